//! Asking for slices of the quota, and giving them back.

use std::sync::Arc;
use std::time::Duration;

use gofs_proto::Link;
use gofs_proto::session::failure::Code;
use gofs_proto::session::{Amount, Delegate, DelegateReply, Failure, Metered, RecallSlice};
use gofs_tree::FsError;

use super::Core;
use crate::slices::Room;

/// Pause before a slice is asked for again after one was given back.
const REOPEN: Duration = Duration::from_secs(1);

impl Core {
    /// Leave for files to grow by so many bytes: out of the slice, or where no slice is given by asking for each change.
    pub async fn make_room(self: &Arc<Self>, bytes: u64) -> Result<Room, FsError> {
        loop {
            let room = || self.data.reserve(bytes).or_else(|| self.slices.through());
            if let Some(room) = room() {
                return Ok(room);
            }
            let _asking = self.slices_asked.lock().await;
            // Whoever asked before may have made it.
            if let Some(room) = room() {
                return Ok(room);
            }
            if !self.ask_for_slice(bytes).await? {
                self.give_slice_back().await?;
            }
        }
    }

    /// Finds out what is metered.
    pub async fn begin_slices(self: &Arc<Self>) {
        let _asking = self.slices_asked.lock().await;
        // Whoever needs a slice asks again.
        let asked = tokio::time::timeout(self.config.mount_timeout, self.ask_for_slice(0)).await;
        if let Ok(Err(error)) = asked {
            tracing::warn!(%error, "no slice of the quota could be asked for");
        }
    }

    /// Asks ahead, where little is left and nobody is asking.
    pub fn keep_sliced(self: &Arc<Self>) {
        if self.slices.wish(0, self.data.growth()).is_none() || self.slices_asked.try_lock().is_err() {
            return;
        }
        let core = self.clone();
        self.runtime.spawn(async move {
            let Ok(_asking) = core.slices_asked.try_lock() else { return };
            if let Err(error) = core.ask_for_slice(0).await {
                tracing::warn!(%error, "no slice of the quota could be asked for");
            }
        });
    }

    /// Whether more was given, or nothing is metered. The caller holds `slices_asked`.
    async fn ask_for_slice(self: &Arc<Self>, needed: u64) -> Result<bool, FsError> {
        let Some((want, known)) = self.slices.wish(needed, self.data.growth()) else { return Ok(false) };
        self.delegate(Delegate { want: Some(want), known: Some(known), give_back: false }).await
    }

    async fn delegate(self: &Arc<Self>, request: Delegate) -> Result<bool, FsError> {
        let generation = self.identity.lock().generation;
        let core = self.clone();
        let gives_back = request.give_back;
        let then = move |reply: DelegateReply| {
            // An answer to the session before says nothing about this one.
            if core.identity.lock().generation != generation {
                return Ok(true);
            }
            if gives_back {
                core.slices.closed(&reply);
                return Ok(true);
            }
            Ok(core.slices.given(&reply))
        };
        self.session.call(request, then).await
    }

    /// Commits what was promised, and what was made while it was not metered, and gives the rest back. The caller holds
    /// `slices_asked`.
    async fn give_slice_back(self: &Arc<Self>) -> Result<(), FsError> {
        let is_open = self.slices.close();
        // An inode is taken, and its edit logged, under this lock.
        drop(self.table.lock());
        self.slices.counted().await;
        if let Err(error) = self.data.flush_all(false).await {
            tracing::warn!(%error, "before a slice of the quota was given back a file could not be written");
        }
        self.all_edits_sent().await?;
        if !is_open {
            return Ok(());
        }
        let nothing = Some(Amount::default());
        self.delegate(Delegate { want: nothing, known: nothing, give_back: true }).await?;
        let core = Arc::downgrade(self);
        self.runtime.spawn(async move {
            loop {
                tokio::time::sleep(REOPEN).await;
                let Some(core) = core.upgrade().filter(|core| !core.session.is_stopped()) else { return };
                let _asking = core.slices_asked.lock().await;
                if core.slices.reopen() {
                    return;
                }
            }
        });
        Ok(())
    }

    /// Others need the quota, or it is about to change. Called on the link's task.
    pub fn on_recall_slice(self: &Arc<Self>, link: &Arc<Link>, id: u64) {
        self.slices.meter(Metered { bytes: true, inodes: true });
        let (core, link) = (self.clone(), link.clone());
        self.runtime.spawn(async move {
            let _asking = core.slices_asked.lock().await;
            match core.give_slice_back().await {
                Ok(()) => link.reply::<RecallSlice>(id, &Default::default(), Vec::new()),
                Err(error) => link.refuse(id, &Failure::new(Code::Retry, error.to_string())),
            }
        });
    }
}
