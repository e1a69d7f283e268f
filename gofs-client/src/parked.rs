//! Work that was begun on one thread and goes on where its wait ends.
//!
//! The first poll is on the caller's thread. Work that has to wait is parked without any thread being told; the first wake
//! makes it a task of the runtime. Whoever wakes it is a thread of the runtime mostly, the one that has just read the answer
//! from a connection, and that goes on with the work itself.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Wake, Waker};

use parking_lot::Mutex;
use tokio::runtime::Handle;

type Work = Pin<Box<dyn Future<Output = ()> + Send>>;

enum State {
    /// The first poll is under way.
    Begun,
    /// It was woken during the first poll.
    Woken,
    Parked(Work),
    /// It ended, or is the runtime's.
    Gone,
}

struct Parked {
    state: Mutex<State>,
    runtime: Handle,
}

impl Wake for Parked {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let work = {
            let mut state = self.state.lock();
            match std::mem::replace(&mut *state, State::Gone) {
                State::Parked(work) => work,
                State::Begun | State::Woken => {
                    *state = State::Woken;
                    return;
                }
                State::Gone => return,
            }
        };
        self.runtime.spawn(work);
    }
}

/// Polls `work` once here and returns whether that ended it; if it has to wait it ends in `runtime`. Must be called within
/// the runtime's context.
pub fn begin(runtime: &Handle, work: impl Future<Output = ()> + Send + 'static) -> bool {
    let parked = Arc::new(Parked { state: Mutex::new(State::Begun), runtime: runtime.clone() });
    let mut work: Work = Box::pin(work);
    let ended = work.as_mut().poll(&mut Context::from_waker(&Waker::from(parked.clone()))).is_ready();
    let mut state = parked.state.lock();
    match std::mem::replace(&mut *state, State::Gone) {
        _ if ended => {}
        State::Begun => *state = State::Parked(work),
        State::Woken | State::Parked(_) | State::Gone => {
            drop(state);
            runtime.spawn(work);
        }
    }
    ended
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::task::Poll;
    use std::thread;

    use tokio::sync::oneshot;

    use super::*;

    #[test]
    fn what_need_not_wait_ends_on_the_callers_thread() {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let (tell, told) = std::sync::mpsc::channel();
        assert!(begin(runtime.handle(), async move { tell.send(thread::current().id()).unwrap() }));
        assert_eq!(told.try_recv().unwrap(), thread::current().id());
    }

    #[test]
    fn what_waits_is_polled_when_it_is_woken_and_not_before() {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let polls = Arc::new(AtomicU32::new(0));
        let (answer, mut answered) = oneshot::channel::<u32>();
        let (tell, told) = std::sync::mpsc::channel();
        let counted = polls.clone();
        let ended = begin(runtime.handle(), async move {
            let answer = std::future::poll_fn(|cx| {
                counted.fetch_add(1, Ordering::SeqCst);
                Pin::new(&mut answered).poll(cx)
            });
            tell.send(answer.await.unwrap()).unwrap();
        });
        assert!(!ended);
        assert_eq!(polls.load(Ordering::SeqCst), 1);
        answer.send(7).unwrap();
        assert_eq!(told.recv().unwrap(), 7);
        assert_eq!(polls.load(Ordering::SeqCst), 2);
    }

    #[test]
    fn a_wake_during_the_first_poll_is_not_lost() {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let (tell, told) = std::sync::mpsc::channel();
        let mut first = true;
        begin(runtime.handle(), async move {
            std::future::poll_fn(|cx| {
                if std::mem::take(&mut first) {
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
                Poll::Ready(())
            })
            .await;
            tell.send(()).unwrap();
        });
        told.recv().unwrap();
    }

    #[test]
    fn many_waits_one_after_the_other_end() {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let _entered = runtime.enter();
        let (tell, told) = std::sync::mpsc::channel();
        for _ in 0..200 {
            let tell = tell.clone();
            begin(runtime.handle(), async move {
                for _ in 0..5 {
                    let (answer, answered) = oneshot::channel();
                    thread::spawn(move || answer.send(()).unwrap());
                    answered.await.unwrap();
                }
                tell.send(()).unwrap();
            });
        }
        drop(tell);
        assert_eq!(told.iter().count(), 200);
    }
}
