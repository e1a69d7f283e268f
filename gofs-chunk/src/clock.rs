//! The clock that counts suspend, on which it is measured how long sessions may write.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// Time since boot, suspend included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct BootTime(Duration);

impl BootTime {
    /// Now.
    pub fn now() -> BootTime {
        let time = clock_gettime(ClockId::Boottime);
        BootTime(Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec as u32))
    }

    /// So long after this.
    #[must_use]
    pub fn after(self, by: Duration) -> BootTime {
        BootTime(self.0 + by)
    }
}
