//! Opens that missed their file.
//!
//! Between a look-up and the OPEN that follows, another mount may replace or remove the file.
//! A local file system opens what the look-up found; here that is gone, and the kernel, told ESTALE, tries once
//! more. Against someone who replaces the file again and again the second try may miss too. So after a miss look-ups
//! hold what they find open until the OPEN has come.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// How long a look-up after a miss holds a file open.
pub const HOLD: Duration = Duration::from_secs(1);

/// When an open last missed its file.
#[derive(Debug, Default)]
pub struct Missed(Mutex<Option<Instant>>);

impl Missed {
    /// An open has just missed.
    pub fn note(&self) {
        *self.0.lock() = Some(Instant::now());
    }

    /// Whether one has within [`HOLD`].
    pub fn lately(&self) -> bool {
        self.0.lock().is_some_and(|at| at.elapsed() < HOLD)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_miss_is_remembered() {
        let missed = Missed::default();
        assert!(!missed.lately());
        missed.note();
        assert!(missed.lately());
    }
}
