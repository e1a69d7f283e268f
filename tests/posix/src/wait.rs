//! Waiting for conditions.

use std::time::{Duration, Instant};

const POLL: Duration = Duration::from_millis(5);

/// Waits until `condition` holds; panics with `what` after `timeout`.
pub fn wait_for(what: &str, timeout: Duration, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + timeout;
    while !condition() {
        assert!(Instant::now() < deadline, "waited {timeout:?} in vain for {what}");
        std::thread::sleep(POLL);
    }
}

/// Waits until `check` gives `Ok`; panics with its last error after `timeout`.
pub fn eventually<T>(what: &str, timeout: Duration, mut check: impl FnMut() -> Result<T, String>) -> T {
    let deadline = Instant::now() + timeout;
    loop {
        match check() {
            Ok(value) => return value,
            Err(error) => {
                assert!(Instant::now() < deadline, "waited {timeout:?} in vain for {what}: {error}")
            }
        }
        std::thread::sleep(POLL);
    }
}
