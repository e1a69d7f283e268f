//! Making room in the cache.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use gofs_proto::session::Release;
use gofs_tree::Ino;

use super::Core;
use super::recall::drain;
use crate::lease::Eviction;

/// Between one eviction and the next.
const EVICT_PAUSE: Duration = Duration::from_millis(20);

impl Core {
    /// Gives leases back until the cache is within its budget; one at a time does.
    pub fn begin_eviction(self: &Arc<Self>) {
        self.evict_wanted.store(true, Ordering::Release);
        if !self.evicting.swap(true, Ordering::AcqRel) {
            let core = self.clone();
            self.runtime.spawn(async move { core.evict_while_wanted().await });
        }
    }

    async fn evict_while_wanted(self: &Arc<Self>) {
        loop {
            while self.evict_wanted.swap(false, Ordering::AcqRel) {
                self.evict().await;
                // What is in use may be more than the budget by itself; then there is no point in looking all the time.
                self.pause(EVICT_PAUSE).await;
            }
            self.evicting.store(false, Ordering::Release);
            // Wanted again since the last look: by whoever is first.
            if !self.evict_wanted.load(Ordering::Acquire) || self.evicting.swap(true, Ordering::AcqRel) {
                return;
            }
        }
    }

    async fn evict(self: &Arc<Self>) {
        let is_dirty = |ino| self.data.overlay(ino).is_some();
        let Eviction { victims, again } = self.table.lock().evict(self.config.cache_bytes, is_dirty);
        if again {
            self.evict_wanted.store(true, Ordering::Release);
        }
        if victims.is_empty() {
            return;
        }
        for victim in &victims {
            drain(&victim.uses).await;
        }
        let inos: Vec<Ino> = victims.iter().map(|victim| victim.ino).collect();
        {
            // A victim that is read meanwhile just stays; so no read has to wait for the whole batch.
            let mut table = self.table.lock();
            for ino in &inos {
                table.begin_invalidation(*ino, true);
            }
        }
        self.changed.notify_waiters();
        let names = victims.iter().any(|victim| victim.is_directory);
        let (kernel, forgotten) = (self.kernel.clone(), inos.clone());
        self.in_kernel(move || {
            forgotten.iter().for_each(|ino| kernel.invalidate_inode(*ino));
            if names {
                kernel.invalidate_entries();
            }
        })
        .await;
        let (released, generation) = {
            let mut table = self.table.lock();
            let gone = |ino: &Ino| table.end_eviction(*ino, is_dirty);
            let released: Vec<Ino> = inos.iter().copied().filter(gone).collect();
            for ino in &released {
                self.data.drop_clean(*ino);
            }
            (released, self.identity.lock().generation)
        };
        self.changed.notify_waiters();
        if released.is_empty() {
            return;
        }
        let core = self.clone();
        let request = Release { inos: released.iter().map(|ino| ino.0).collect() };
        let answered = released.clone();
        let result = self
            .session
            .call_long_in(generation, request, move |_| {
                core.table.lock().released(&answered);
                Ok(())
            })
            .await;
        if let Err(error) = result {
            tracing::warn!(%error, "leases could not be given back");
            let mut table = self.table.lock();
            // With the session all of them went.
            if self.identity.lock().generation == generation {
                table.released(&released);
            }
        }
    }
}
