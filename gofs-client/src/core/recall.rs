//! Serving the server's recalls: replies in flight, then the kernel's copies, then what is unwritten, then the
//! acknowledgement. Nothing here is waited for that could wait for this recall.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use gofs_proto::Link;
use gofs_proto::convert;
use gofs_proto::session::failure::Code;
use gofs_proto::session::{Failure, Recall, RecallReply};
use gofs_tree::{FsError, Ino, LeaseEpoch, LeaseMode, Name};

use super::Core;
use crate::clock::BootTime;
use crate::lease::{LockedPages, PAGE_BYTES, Recalled, Taken, Uses};

/// How long the kernel may take to forget before reads, of which one may hold a page that it waits for, pass.
const READS_WAIT: Duration = Duration::from_millis(5);

/// How long it may take before requests that wait, of which one may hold a page that it waits for, are worked around: from, to.
const WRITES_WAIT: (Duration, Duration) = (Duration::from_millis(15), Duration::from_secs(1));

/// How long to read what a file held below pages of a memory map that were changed: another mount waits.
const TRIM_WAIT: Duration = Duration::from_secs(2);

/// A recall as it was asked for.
struct Request {
    link: Arc<Link>,
    id: u64,
    ino: Ino,
    epoch: LeaseEpoch,
    keep: Option<LeaseMode>,
    names: Vec<Name>,
}

impl Request {
    fn acknowledge(&self, open: bool) {
        self.link.reply::<Recall>(self.id, &RecallReply { open }, Vec::new());
    }
}

impl Core {
    /// Called on the link's task, in order with the grants before: nothing that comes after is answered from
    /// what is recalled.
    pub fn on_recall(self: &Arc<Self>, link: &Arc<Link>, id: u64, recall: &Recall) {
        let names: Result<Vec<Name>, _> = recall.names.iter().map(|name| convert::name(name)).collect();
        let (keep, names) = match (convert::lease_mode(recall.keep), names) {
            (Ok(keep), Ok(names)) => (keep, names),
            (Err(error), _) | (_, Err(error)) => {
                tracing::error!(ino = recall.ino, %error, "recall makes no sense");
                return link.refuse(id, &Failure::new(Code::BadRequest, error.to_string()));
            }
        };
        let (ino, epoch) = (Ino(recall.ino), LeaseEpoch(recall.epoch));
        let request = Request { link: link.clone(), id, ino, epoch, keep, names };
        if let Some(recalled) = self.begin_recall(&request) {
            let core = self.clone();
            self.runtime.spawn(async move { core.serve_recall(request, recalled).await });
        }
    }

    /// `None` where it is acknowledged already.
    fn begin_recall(&self, request: &Request) -> Option<Recalled> {
        let mut table = self.table.lock();
        match table.recall(request.ino, request.epoch, request.keep, &request.names) {
            Recalled::Acknowledge { open } => {
                // With the table locked: a Closed that says otherwise must come after.
                request.acknowledge(open);
                None
            }
            begun => Some(begun),
        }
    }

    async fn serve_recall(self: Arc<Self>, request: Request, mut recalled: Recalled) {
        loop {
            match recalled {
                Recalled::Acknowledge { .. } => return,
                Recalled::Names(uses) => return self.give_back_names(&request, uses).await,
                Recalled::Begun(taken) => return self.give_back(&request, taken).await,
                Recalled::Busy => {
                    let begun = self.wait_hard(|| match self.begin_recall(&request) {
                        Some(Recalled::Busy) => None,
                        other => Some(other),
                    });
                    match begun.await {
                        Some(begun) => recalled = begun,
                        None => return,
                    }
                }
            }
        }
    }

    /// As `wait_for` but for ever, and `check` locks by itself.
    pub async fn wait_hard<T>(&self, mut check: impl FnMut() -> Option<T>) -> T {
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            changed.as_mut().enable();
            if let Some(found) = check() {
                return found;
            }
            changed.await;
        }
    }

    async fn give_back_names(self: &Arc<Self>, request: &Request, uses: Vec<Arc<Uses>>) {
        drain(&uses).await;
        let (kernel, ino) = (self.kernel.clone(), request.ino);
        self.in_kernel(move || {
            kernel.invalidate_entries();
            kernel.invalidate_inode(ino);
        })
        .await;
        let table = self.table.lock();
        request.acknowledge(table.is_open(ino));
        drop(table);
    }

    async fn give_back(self: &Arc<Self>, request: &Request, taken: Taken) {
        let ino = request.ino;
        drain(&taken.uses).await;
        self.make_kernel_forget(ino).await;
        if taken.mode == LeaseMode::Write {
            self.flush_for_recall(ino).await;
            self.settled_hard(ino).await;
        } else {
            self.wait_hard(|| (!self.table.lock().is_held(ino)).then_some(())).await;
        }
        self.trim_parked(ino).await;
        let mut table = self.table.lock();
        if request.keep.is_none() && table.linger(ino, BootTime::now()) {
            self.close_later(ino);
        }
        let open = table.end_recall(ino, request.keep);
        if table.mode(ino).is_none() {
            self.data.drop_clean(ino);
        }
        request.acknowledge(open);
        drop(table);
        self.changed.notify_waiters();
    }

    /// Until no operation holds the lease and nothing is unwritten. What cannot be written is lost, and told.
    async fn flush_for_recall(self: &Arc<Self>, ino: Ino) {
        // Writers in progress may wait for room that only a flush makes.
        let held = self.wait_hard(|| (!self.table.lock().is_held(ino)).then_some(()));
        let (first, ()) = tokio::join!(self.data.flush(ino, false), held);
        let flushed = match first {
            Ok(()) => self.data.flush(ino, false).await,
            failed => failed,
        };
        if let Err(error) = flushed {
            tracing::error!(%ino, %error, "written bytes could not be flushed for another mount and are lost");
            if self.data.discard(ino) {
                self.lost_files.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Others may change what was not changed here before the parked pages are written: what the file holds can be read for as
    /// long as the lease is here. Pages for which that takes too long are written whole.
    async fn trim_parked(&self, ino: Ino) {
        let pages = self.table.lock().parked_pages(ino);
        if pages.is_empty() {
            return;
        }
        let mut held = Vec::with_capacity(pages.len());
        let reading = async {
            for (offset, bytes) in &pages {
                held.push(self.data.read(ino, *offset, bytes.len() as u32).await?.concat());
            }
            Ok::<_, FsError>(())
        };
        if !matches!(tokio::time::timeout(TRIM_WAIT, reading).await, Ok(Ok(()))) {
            let whole = pages.len() - held.len();
            tracing::warn!(%ino, whole, "what a file held before pages of a memory map were changed cannot be read now");
        }
        self.table.lock().trim_parked(ino, &held);
    }

    /// The kernel forgets attributes and pages; names too where the inode is a directory. Reads that are in the way
    /// pass, and then the kernel forgets again.
    async fn make_kernel_forget(self: &Arc<Self>, ino: Ino) {
        loop {
            self.table.lock().begin_invalidation(ino, false);
            self.forget_pages(ino).await;
            let slipped = self.table.lock().end_invalidation(ino);
            match slipped {
                Some(uses) => drain(&uses).await,
                None => break,
            }
        }
        if self.table.lock().has_names(ino) {
            let kernel = self.kernel.clone();
            self.in_kernel(move || kernel.invalidate_entries()).await;
        }
    }

    /// Once, everything but pages that the kernel keeps locked for requests that wait: writes for this recall, reads for servers.
    async fn forget_pages(self: &Arc<Self>, ino: Ino) {
        let waiting = self.table.lock().waiting_pages(ino);
        let is_tried = |waiting: &Arc<LockedPages>| waiting.is_tried.load(Ordering::Acquire);
        // Tried before: one more thread would wait there, at each recall, for as long as the servers take.
        if waiting.iter().any(is_tried) && self.forget_around(ino, &waiting).await {
            return;
        }
        let kernel = self.kernel.clone();
        let pass = self.in_kernel(move || kernel.invalidate_inode(ino));
        tokio::pin!(pass);
        if tokio::time::timeout(READS_WAIT, &mut pass).await.is_ok() {
            return;
        }
        self.table.lock().let_reads_pass(ino);
        self.changed.notify_waiters();
        let mut wait = WRITES_WAIT.0;
        while tokio::time::timeout(wait, &mut pass).await.is_err() {
            wait = (wait * 2).min(WRITES_WAIT.1);
            let waiting = self.table.lock().waiting_pages(ino);
            if !waiting.is_empty() && self.forget_around(ino, &waiting).await {
                // The pass itself ends when these requests are answered.
                return;
            }
        }
    }

    /// Pages into which the kernel has put bytes that were written elsewhere, because another mount has moved the end of
    /// the file, and those that it read before bytes came there around its cache. One that it keeps locked until the write is
    /// answered cannot be read, and goes then; so does one that is being read, when that is answered.
    pub async fn forget_written(self: &Arc<Self>, ino: Ino, offset: u64, len: u64) {
        let kernel = self.kernel.clone();
        let pass = self.in_kernel(move || kernel.invalidate_pages(ino, offset, len));
        let pause = self.pause(WRITES_WAIT.0);
        tokio::select! {
            () = pass => {}
            () = pause => {}
        }
    }

    /// The pages around these, then these one after the other. False where something else is in the way.
    pub(super) async fn forget_around(self: &Arc<Self>, ino: Ino, waiting: &[Arc<LockedPages>]) -> bool {
        let mut ranges = Vec::with_capacity(waiting.len() + 1);
        let mut start = 0;
        for LockedPages { pages, .. } in waiting.iter().map(Arc::as_ref) {
            if pages.start > start {
                ranges.push((start * PAGE_BYTES, (pages.start - start) * PAGE_BYTES));
            }
            start = start.max(pages.end);
        }
        ranges.push((start * PAGE_BYTES, 0));
        let kernel = self.kernel.clone();
        let around = self.in_kernel(move || {
            ranges.iter().for_each(|(offset, len)| kernel.invalidate_pages(ino, *offset, *len));
        });
        if tokio::time::timeout(WRITES_WAIT.0, around).await.is_err() {
            return false;
        }
        for locked in waiting {
            if !self.forget_locked(ino, locked).await {
                return false;
            }
        }
        true
    }

    /// Pages that a request keeps locked hold nothing that could be read: had they, they would not be locked. False where that
    /// request does not wait any more, and the kernel has not forgotten them.
    async fn forget_locked(self: &Arc<Self>, ino: Ino, locked: &Arc<LockedPages>) -> bool {
        if !locked.is_tried.swap(true, Ordering::AcqRel) {
            let (kernel, tried) = (self.kernel.clone(), locked.clone());
            let one = self.in_kernel(move || {
                let Range { start, end } = tried.pages;
                kernel.invalidate_pages(ino, start * PAGE_BYTES, (end - start) * PAGE_BYTES);
                tried.is_tried.store(false, Ordering::Release);
            });
            if tokio::time::timeout(WRITES_WAIT.0, one).await.is_ok() {
                return true;
            }
        }
        self.table.lock().waits_with(ino, locked)
    }

    /// Notifications can wait for requests in flight: never from the runtime's own threads.
    pub async fn in_kernel(&self, work: impl FnOnce() + Send + 'static) {
        if self.runtime.spawn_blocking(work).await.is_err() {
            tracing::error!("a notification of the kernel panicked");
        }
    }
}

/// Waits for replies in flight.
pub(super) async fn drain(uses: &[Arc<Uses>]) {
    for uses in uses {
        uses.drained().await;
    }
}
