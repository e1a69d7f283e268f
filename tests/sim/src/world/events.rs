//! What is going to happen by itself, in order of time and of when it was decided.

use std::collections::BTreeMap;

use super::World;

type Act = Box<dyn FnOnce(&mut World) + Send>;

/// See the module.
#[derive(Default)]
pub struct Events {
    due: BTreeMap<(u64, u64), Act>,
    next: u64,
}

impl Events {
    /// When the next one is due.
    pub fn next_at(&self) -> Option<u64> {
        self.due.keys().next().map(|(at, _)| *at)
    }

    /// Takes the next one that is due.
    pub fn take(&mut self, now: u64) -> Option<Act> {
        let entry = self.due.first_entry()?;
        (entry.key().0 <= now).then(|| entry.remove())
    }
}

impl World {
    /// Does this at that time.
    pub fn at(&mut self, time: u64, act: impl FnOnce(&mut World) + Send + 'static) {
        let events = &mut self.events;
        events.due.insert((time, events.next), Box::new(act));
        events.next += 1;
    }
}
