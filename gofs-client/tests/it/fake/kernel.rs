//! A kernel that remembers what it was asked to forget, and may hold pages locked.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use gofs_client::{Client, KernelCache};
use gofs_tree::Ino;
use parking_lot::{Condvar, Mutex, MutexGuard};

/// Longest that anything is locked.
const LOCKED_MAX: Duration = Duration::from_secs(30);

/// See the module.
#[derive(Default)]
pub struct Kernel {
    forgotten: Mutex<Vec<String>>,
    /// Runs inside of the next invalidations of an inode, as what the kernel does meanwhile.
    pub meanwhile: Mutex<Vec<Meanwhile>>,
    client: Mutex<Option<Weak<Client>>>,
    /// A page that a request in flight keeps locked.
    locked_page: Mutex<Option<u64>>,
    /// Inodes that cannot be forgotten.
    stuck: Mutex<Vec<Ino>>,
    unlocked: Condvar,
    let_go: Condvar,
    pub cannot_forget_names: AtomicBool,
}

/// Not for ever: a test that has failed must end.
fn wait<T>(change: &Condvar, locked: &mut MutexGuard<'_, T>) {
    assert!(!change.wait_for(locked, LOCKED_MAX).timed_out(), "nobody lets it go");
}

type Meanwhile = Box<dyn FnOnce(Arc<Client>) + Send>;

impl Kernel {
    /// Whose kernel it is.
    pub fn mounted(&self, client: &Arc<Client>) {
        *self.client.lock() = Some(Arc::downgrade(client));
    }

    pub fn forgotten(&self) -> Vec<String> {
        self.forgotten.lock().clone()
    }

    pub fn lock_page(&self, page: u64) {
        *self.locked_page.lock() = Some(page);
    }

    pub fn unlock_page(&self) {
        *self.locked_page.lock() = None;
        self.unlocked.notify_all();
    }

    /// Of these inodes something is in flight for which the kernel waits before it forgets them.
    pub fn keep(&self, inos: &[Ino]) {
        *self.stuck.lock() = inos.to_vec();
    }

    pub fn let_go(&self) {
        self.stuck.lock().clear();
        self.let_go.notify_all();
    }

    /// As the kernel does: what is locked is waited for.
    fn wait_for_pages(&self, offset: u64, len: u64) {
        let mut locked = self.locked_page.lock();
        let in_the_way = |page: u64| page * 4096 >= offset && (len == 0 || page * 4096 < offset + len);
        while locked.is_some_and(in_the_way) {
            wait(&self.unlocked, &mut locked);
        }
    }
}

impl KernelCache for Kernel {
    fn invalidate_inode(&self, ino: Ino) {
        let work = self.meanwhile.lock().pop();
        let client = self.client.lock().as_ref().and_then(Weak::upgrade);
        if let (Some(work), Some(client)) = (work, client) {
            work(client);
        }
        self.wait_for_pages(0, 0);
        let mut stuck = self.stuck.lock();
        while stuck.contains(&ino) {
            wait(&self.let_go, &mut stuck);
        }
        drop(stuck);
        self.forgotten.lock().push(ino.to_string());
    }

    fn invalidate_pages(&self, ino: Ino, offset: u64, len: u64) {
        self.wait_for_pages(offset, len);
        self.forgotten.lock().push(format!("{ino} {offset}+{len}"));
    }

    fn forget_attributes(&self, ino: Ino) {
        self.forgotten.lock().push(format!("attributes of {ino}"));
    }

    fn invalidate_entries(&self) {
        self.forgotten.lock().push("names".to_owned());
    }

    fn can_cache_entries(&self) -> bool {
        !self.cannot_forget_names.load(Ordering::Relaxed)
    }
}
