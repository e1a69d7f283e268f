//! Carries out what the MetaServer says, and answers.

use std::sync::Arc;

use gofs_proto::cluster::{Done, Report, instruction, report};
use gofs_tree::{ChunkId, ChunkVersion, SessionId};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;

use super::copy::{Pace, copy};
use crate::service::{Service, blocking};
use crate::store::Doubt;

/// Copies at once. Those of small chunks wait for round trips and for the disk; the MetaServer orders few large ones, and
/// says how fast all of them together may be.
const COPIES_MAX: usize = 32;
/// Other instructions at once.
const OTHERS_MAX: usize = 8;

/// For one stream.
pub struct Worker {
    service: Arc<Service>,
    reports: mpsc::Sender<Report>,
    copies: Arc<Semaphore>,
    pace: Arc<Pace>,
    others: Arc<Semaphore>,
    tasks: parking_lot::Mutex<JoinSet<()>>,
}

impl Worker {
    /// Answers go to `reports`. Dropping the worker stops what waits.
    pub fn new(service: Arc<Service>, reports: mpsc::Sender<Report>) -> Worker {
        Worker {
            service,
            reports,
            copies: Arc::new(Semaphore::new(COPIES_MAX)),
            pace: Arc::new(Pace::default()),
            others: Arc::new(Semaphore::new(OTHERS_MAX)),
            tasks: parking_lot::Mutex::new(JoinSet::new()),
        }
    }

    /// Begins to carry out an instruction.
    pub fn start(&self, id: u64, body: instruction::Body) {
        let (service, reports, pace) = (self.service.clone(), self.reports.clone(), self.pace.clone());
        let bound = match &body {
            instruction::Body::Copy(_) => Some(self.copies.clone()),
            // Clients wait for these, and they take no time.
            instruction::Body::Fence(_) | instruction::Body::SetVersion(_) => None,
            _ => Some(self.others.clone()),
        };
        self.spawn(async move {
            let _permit = match bound {
                Some(bound) => bound.acquire_owned().await.ok(),
                None => None,
            };
            let result = carry_out(&service, &pace, body).await;
            if let Err(error) = &result {
                tracing::warn!(instruction = id, error, "instruction not carried out");
            }
            done(&reports, id, result).await;
        });
    }

    /// Answers one that is not carried out.
    pub fn answer(&self, id: u64, result: Result<(), String>) {
        let reports = self.reports.clone();
        self.spawn(async move { done(&reports, id, result).await });
    }

    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = self.tasks.lock();
        while tasks.try_join_next().is_some() {}
        tasks.spawn(task);
    }
}

async fn done(reports: &mpsc::Sender<Report>, id: u64, result: Result<(), String>) {
    let done = Done { id, error: result.err().unwrap_or_default() };
    // The stream has ended: nobody waits for the answer.
    let _ = reports.send(Report { body: Some(report::Body::Done(done)) }).await;
}

async fn carry_out(service: &Arc<Service>, pace: &Pace, body: instruction::Body) -> Result<(), String> {
    let store = &service.store;
    let text = |error: &dyn std::fmt::Display| error.to_string();
    match body {
        instruction::Body::Accepted(_) => Err("accepted twice".to_owned()),
        // Taken by whoever reads the stream.
        instruction::Body::Heard(_) | instruction::Body::Members(_) => Ok(()),
        instruction::Body::Copy(order) => copy(service, pace, &order).await,
        instruction::Body::Delete(order) => {
            let version = Some(ChunkVersion(order.version));
            blocking(|| store.delete(ChunkId(order.chunk), version)).map_err(|error| text(&error))
        }
        instruction::Body::SetVersion(order) => {
            let (from, to) = (ChunkVersion(order.from), ChunkVersion(order.to));
            let doubt = if order.sure { Doubt::Refused } else { Doubt::Ends };
            blocking(|| store.set_version(ChunkId(order.chunk), from, to, doubt))
                .map_err(|error| text(&error))
        }
        instruction::Body::Verify(order) => {
            blocking(|| store.verify(ChunkId(order.chunk))).map_err(|error| text(&error))
        }
        instruction::Body::Fence(order) => {
            blocking(|| service.fences.add(SessionId(order.session)));
            Ok(())
        }
    }
}
