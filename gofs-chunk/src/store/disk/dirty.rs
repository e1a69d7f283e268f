//! Which chunks may lack acknowledged writes after a power cut.
//!
//! A chunk is dirty, durably, before a write to it is acknowledged that is not durable. It is made dirty, so
//! the creation of a chunk waits for nothing: lost with the cut, it is missing, and that is seen. It is clean
//! again when nothing was written for a while and all is synced.

use std::time::{Duration, Instant};

use gofs_tree::ChunkId;

use super::super::chunk::{ChunkState, Life};
use super::super::error::StoreError;
use super::super::log::{Change, Lsn};
use super::Disk;

/// Chunks cleaned at once.
const CLEAN_MAX: usize = 4096;

impl Disk {
    /// A write or punch is about to be acknowledged without sync. The record that has to be durable before
    /// that; the caller holds the gate, and syncs the log when it has let go of the state.
    pub(super) fn make_dirty(&self, chunk: ChunkId, state: &mut ChunkState) -> Result<Lsn, StoreError> {
        self.dirty.lock().insert(chunk, Instant::now());
        if !state.dirty {
            let lsn = self.append(chunk, &Change::Dirty, &[])?.lsn;
            state.dirty = true;
            state.dirtied = lsn;
            state.last = lsn;
        }
        // Another writer may have made it dirty and be waiting for the sync.
        Ok(state.dirtied)
    }

    /// Syncs dirty chunks that were left alone for so long, and has them clean.
    pub(super) fn clean_idle(&self, idle: Duration) -> Result<(), StoreError> {
        let now = Instant::now();
        let quiet: Vec<(ChunkId, Instant)> = {
            let dirty = self.dirty.lock();
            let quiet = dirty.iter().filter(|(_, written)| now.duration_since(**written) >= idle);
            quiet.map(|(chunk, written)| (*chunk, *written)).collect()
        };
        for some in quiet.chunks(CLEAN_MAX) {
            let mut last = Lsn(0);
            let mut synced = Vec::with_capacity(some.len());
            for (chunk, written) in some {
                match self.sync_chunk(*chunk) {
                    Ok(lsn) => {
                        last = last.max(lsn);
                        synced.push((*chunk, *written));
                    }
                    // It stays dirty on disk; the damage is reported.
                    Err(StoreError::Corrupt { .. }) => {
                        self.dirty.lock().remove(chunk);
                    }
                    Err(error) => return Err(error),
                }
            }
            self.sync_log(last)?;
            for (chunk, written) in synced {
                self.clean_chunk(chunk, written)?;
            }
        }
        Ok(())
    }

    fn clean_chunk(&self, chunk: ChunkId, written: Instant) -> Result<(), StoreError> {
        let cell = self.cell(chunk);
        let _gate = self.gate.read();
        let mut state = cell.as_ref().map(|cell| cell.state.write());
        {
            // Under the chunk's lock nobody writes; who has written since the sync is not forgotten.
            let mut dirty = self.dirty.lock();
            if dirty.get(&chunk) != Some(&written) {
                return Ok(());
            }
            dirty.remove(&chunk);
        }
        if let Some(state) = &mut state
            && state.life == Life::Live
            && state.dirty
        {
            let lsn = self.append(chunk, &Change::Clean, &[])?.lsn;
            state.dirty = false;
            state.last = lsn;
        }
        Ok(())
    }
}
