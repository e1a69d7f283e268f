//! How long to wait before the next try, and when to give up.

use std::time::{Duration, Instant};

use gofs_tree::FsError;

use super::ChunkLocation;

const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// Answers of servers that contradict what the MetaServer said are believed after so many tries:
/// some ten seconds, a heartbeat and a failover.
const CONTRADICTIONS_MAX: u32 = 16;
/// That nothing is left of a chunk, although all servers are there, is believed after so many: some two seconds, a report on its way.
const LOST_MAX: u32 = 8;

/// The tries of one request. Transport trouble goes on for ever (`hard`) or until the time is up (`soft`).
pub(super) struct Retry {
    give_up: Option<Instant>,
    pause: Duration,
    contradictions: u32,
    warned: bool,
}

impl Retry {
    pub fn new(soft_timeout: Option<Duration>) -> Self {
        Retry {
            give_up: soft_timeout.map(|timeout| Instant::now() + timeout),
            pause: FIRST_PAUSE,
            contradictions: 0,
            warned: false,
        }
    }

    /// Waits before the next try after transport trouble; `Io` when the time is up.
    pub async fn unreachable(&mut self, what: &str) -> Result<(), FsError> {
        if self.give_up.is_some_and(|at| Instant::now() >= at) {
            tracing::error!(error = %what, "gave up: no chunk server answered in time");
            return Err(FsError::Io);
        }
        if self.pause >= LONGEST_PAUSE && !self.warned {
            self.warned = true;
            tracing::warn!(error = %what, "waiting for a chunk server");
        }
        self.sleep().await;
        Ok(())
    }

    /// Waits before the next try after an answer that should pass; `Io` when it does not.
    pub async fn contradicted(&mut self, what: &str) -> Result<(), FsError> {
        self.contradictions += 1;
        if self.contradictions >= CONTRADICTIONS_MAX {
            tracing::error!(error = %what, "gave up: chunk servers and metadata do not agree");
            return Err(FsError::Io);
        }
        self.sleep().await;
        Ok(())
    }

    /// Waits before the next try after the MetaServer has said that nothing is left of the chunk; `Io` when it says so still.
    pub async fn lost(&mut self, location: &ChunkLocation) -> Result<(), FsError> {
        self.contradictions += 1;
        if self.contradictions >= LOST_MAX {
            tracing::error!(chunk = %location.chunk, "gave up: no chunk server has anything of a chunk");
            return Err(FsError::Io);
        }
        self.sleep().await;
        Ok(())
    }

    async fn sleep(&mut self) {
        let pause = self.pause;
        self.pause = (pause * 2).min(LONGEST_PAUSE);
        // Clients that lost the same server do not come back all at once.
        tokio::time::sleep(pause.mul_f64(rand::random_range(0.75..1.25))).await;
    }
}
