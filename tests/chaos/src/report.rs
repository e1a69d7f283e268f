//! What a run has shown, in numbers.

use std::collections::BTreeMap;
use std::fmt::Write;

use crate::faults::Kind;
use crate::watch::{Class, Kind as Operation, Slow, Stamp, Watch};

const CLASSES: [(Class, &str); 3] = [(Class::Read, "read"), (Class::Write, "write"), (Class::Meta, "names")];

/// Of each fault that was on alone the longest operation of each class, nanoseconds; 0 where none was slow.
#[derive(Default)]
pub struct Pauses(BTreeMap<Kind, BTreeMap<Class, Vec<Stamp>>>);

impl Pauses {
    /// A fault was on from `begun` until now. Operations of the mount that it concerned do not count.
    pub fn add(&mut self, kind: Kind, troubled: Option<usize>, begun: Stamp, slow: &[Slow]) {
        let classes = self.0.entry(kind).or_default();
        for (class, _) in CLASSES {
            let own = slow.iter().filter(|slow| {
                slow.kind.class() == class && Some(slow.mount) != troubled && slow.ended > begun
            });
            let longest = own.map(|slow| slow.ended - slow.begun.max(begun)).max().unwrap_or(0);
            classes.entry(class).or_default().push(longest);
        }
    }

    fn table(&self) -> String {
        let mut text = String::from("longest pause by kind of fault, seconds (median, longest):\n");
        for (kind, classes) in &self.0 {
            let mut line = format!("  {:<15}", kind.to_string());
            for (class, name) in CLASSES {
                let mut pauses = classes.get(&class).cloned().unwrap_or_default();
                pauses.sort_unstable();
                let seconds = |pause: Option<&Stamp>| pause.map_or(0.0, |pause| *pause as f64 / 1e9);
                let (median, most) = (seconds(pauses.get(pauses.len() / 2)), seconds(pauses.last()));
                // Writing to a string cannot fail.
                write!(line, "  {name} {median:6.2} {most:6.2}").ok();
            }
            text += &format!("{line}\n");
        }
        text
    }
}

/// Everything.
pub fn show(watch: &Watch, faults: &BTreeMap<Kind, u64>, pauses: &Pauses) -> String {
    let mut text = format!("{} operations:", watch.total());
    for kind in Operation::ALL {
        text += &format!(" {} {}", format!("{kind:?}").to_lowercase(), watch.count(kind));
    }
    text += &format!("\n{} faults:", faults.values().sum::<u64>());
    for (kind, count) in faults {
        text += &format!(" {kind} {count}");
    }
    let fences: usize = watch.all_fences().iter().map(Vec::len).sum();
    text += &format!("\n{fences} sessions ended by the servers\n");
    text += &pauses.table();
    let violations = watch.violations();
    text += &format!("losses, stale reads and whatever else must not be: {}\n", violations.len());
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_of_each_class_counts_from_the_fault_on() {
        let slow = |mount, kind, begun, ended| Slow { mount, kind, begun, ended };
        let mut pauses = Pauses::default();
        let operations = [
            slow(0, Operation::Read, 5, 25),
            slow(0, Operation::Read, 11, 15),
            slow(1, Operation::Fsync, 12, 99),
            slow(0, Operation::Stat, 1, 9),
        ];
        pauses.add(Kind::ClientCut, Some(1), 10, &operations);
        let classes = &pauses.0[&Kind::ClientCut];
        assert_eq!((&classes[&Class::Read], &classes[&Class::Write]), (&vec![15], &vec![0]));
        assert_eq!(classes[&Class::Meta], vec![0]);
    }
}
