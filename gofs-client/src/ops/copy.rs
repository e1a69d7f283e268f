//! Bytes from file to file.

use gofs_tree::{FsError, Ino, LeaseMode};

use crate::client::Client;
use crate::clock::{BootTime, wall_time};
use crate::core::Hold;
use crate::core::lease::Again;
use crate::handle::FileHandle;
use crate::lease::Holding;

/// Most bytes of one copy_file_range: the leases are kept meanwhile, and others wait for them.
const COPY_MAX: u64 = 64 << 20;

impl Client {
    /// copy_file_range(2): copies at most `len` bytes and returns how many.
    pub async fn copy_file_range(
        &self,
        from: &FileHandle,
        offset: u64,
        to: &FileHandle,
        to_offset: u64,
        len: u64,
    ) -> Result<u64, FsError> {
        let (source, target) = (from.ino(), to.ino());
        let len = len.min(COPY_MAX);
        let apart = offset.saturating_add(len) <= to_offset || to_offset.saturating_add(len) <= offset;
        if source == target && !apart {
            return Err(FsError::Invalid);
        }
        let _holds = self.hold_both(source, target).await?;
        let data = &self.core.data;
        for (ino, mode) in [(source, LeaseMode::Read), (target, LeaseMode::Write)] {
            if !data.is_loaded(ino) {
                drop(self.core.fetch(ino, mode).await?);
            }
        }
        let copied = data.copy_range(source, offset, target, to_offset, len, wall_time()).await?;
        if self.core.config.sync || to.flags().sync {
            let flushed = data.flush(target, true).await;
            // Another flush may have taken these bytes, and lost them.
            flushed.and(data.take_error(target, &to.0.errors))?;
        }
        Ok(copied)
    }

    /// Neither lease is waited for while the other is held: another host may copy the other way.
    async fn hold_both(&self, source: Ino, target: Ino) -> Result<[Option<Hold>; 2], FsError> {
        let core = &self.core;
        if source == target {
            return Ok([Some(core.hold(target, LeaseMode::Write).await?), None]);
        }
        let (one, two) = ((source, LeaseMode::Read), (target, LeaseMode::Write));
        let mut again = Again::default();
        loop {
            let holding = core
                .wait_for(|table| match table.hold_both(one, two, BootTime::now()) {
                    [Holding::Wait, Holding::Wait | Holding::Held] | [Holding::Held, Holding::Wait] => None,
                    holding => Some(holding),
                })
                .await?;
            if holding == [Holding::Held; 2] {
                return Ok([Some(core.held(source)), Some(core.held(target))]);
            }
            again.turn(core).await;
            for ((ino, mode), holding) in [one, two].into_iter().zip(holding) {
                if holding == Holding::NeedLease {
                    drop(core.fetch(ino, mode).await?);
                }
            }
        }
    }
}
