//! What is being waited for, so that people can be told.

use std::collections::BTreeMap;
use std::time::Instant;

use parking_lot::Mutex;

/// Requests without an answer yet.
#[derive(Debug, Default)]
pub struct Waits {
    inner: Mutex<(u64, BTreeMap<u64, Wait>)>,
}

/// One of them.
#[derive(Clone, Copy, Debug)]
pub struct Wait {
    /// The kind of request.
    pub what: &'static str,
    /// Since when.
    pub since: Instant,
}

/// Ends the wait when dropped.
pub struct WaitGuard<'a> {
    waits: &'a Waits,
    id: u64,
}

impl Waits {
    /// A wait begins.
    pub fn begin(&self, what: &'static str) -> WaitGuard<'_> {
        let mut inner = self.inner.lock();
        inner.0 += 1;
        let id = inner.0;
        inner.1.insert(id, Wait { what, since: Instant::now() });
        WaitGuard { waits: self, id }
    }

    /// All of them, oldest first.
    pub fn list(&self) -> Vec<Wait> {
        self.inner.lock().1.values().copied().collect()
    }
}

impl Drop for WaitGuard<'_> {
    fn drop(&mut self) {
        self.waits.inner.lock().1.remove(&self.id);
    }
}
