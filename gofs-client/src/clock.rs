//! The two clocks: one that counts suspend, for leases; the wall's, for time stamps.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use gofs_tree::Timestamp;
use rustix::time::{ClockId, clock_gettime};

/// Time since boot, suspend included: what a lease's end is measured on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct BootTime(Duration);

impl BootTime {
    /// Now.
    pub fn now() -> Self {
        let time = clock_gettime(ClockId::Boottime);
        BootTime(Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec as u32))
    }

    /// So long after this.
    #[must_use]
    pub fn after(self, by: Duration) -> Self {
        BootTime(self.0 + by)
    }

    /// From `earlier` to this; zero where `earlier` is later.
    pub fn since(self, earlier: BootTime) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

/// The wall's time, for mtime and the like; never for leases.
pub fn wall_time() -> Timestamp {
    match SystemTime::now().duration_since(UNIX_EPOCH) {
        Ok(since) => Timestamp::new(since.as_secs() as i64, since.subsec_nanos()),
        Err(before) => Timestamp::new(-(before.duration().as_secs() as i64) - 1, 0),
    }
}
