//! Slices of a namespace's quota: what a session may use without asking, because it counts as used already.
//!
//! What the namespace uses and all that is left of its slices never exceed its quota. A session's batches use its own slice
//! first; everything else leaves all slices alone.

use gofs_tree::{FsError, NamespaceId, Outcome, SessionId, Usage};

use super::StateError;
use super::apply::Batch;
use super::key::{self, kind};
use super::record::{Record, Slice};
use super::view::TreeView;
use crate::command::{CommandOutcome, Refusal};

/// A slice is at most this part of what nobody uses or holds: so there is something for the next who asks.
const PART: u64 = 8;
/// Least that is given, bytes and inodes: with less, the servers decide about each change.
const LEAST: Usage = Usage { bytes: 1 << 20, inodes: 64 };

/// The slices of a namespace while edits of one session are applied.
#[derive(Default)]
pub(super) struct Slices {
    own: Slice,
    /// Left of all.
    all: Usage,
    /// Whether the edits may use the session's own.
    uses_own: bool,
    changed: bool,
}

impl Slices {
    /// Left of those that the edits must not use.
    fn others(&self) -> Usage {
        if !self.uses_own {
            return self.all;
        }
        Usage {
            bytes: self.all.bytes.saturating_sub(self.own.left.bytes),
            inodes: self.all.inodes.saturating_sub(self.own.left.inodes),
        }
    }

    /// Whether an edit may fit when others have given their slices back.
    pub fn are_in_the_way(&self) -> bool {
        self.others() != Usage::default()
    }

    /// Applies an edit within what it may use. Fails where the state cannot be read.
    pub fn apply(
        &mut self,
        view: &mut TreeView,
        edit: impl FnOnce(&mut TreeView) -> Result<Outcome, FsError>,
    ) -> Result<Result<Outcome, FsError>, FsError> {
        if self.all == Usage::default() {
            return Ok(edit(view));
        }
        let (before, _) = view.usage_record()?;
        view.hold(self.others());
        let result = edit(view);
        view.hold(Usage::default());
        let (after, _) = view.usage_record()?;
        if self.uses_own {
            let Slice { left, .. } = &mut self.own;
            let bytes = after.bytes.saturating_sub(before.bytes).min(left.bytes);
            let inodes = after.inodes.saturating_sub(before.inodes).min(left.inodes);
            for amount in [left, &mut self.all] {
                amount.bytes -= bytes;
                amount.inodes -= inodes;
            }
            self.changed |= bytes + inodes > 0;
        }
        Ok(result)
    }
}

/// How much of a quota is given to who asks for `want`.
fn part_of(quota: u64, used: u64, sliced: u64, want: u64, least: u64) -> u64 {
    let part = quota.saturating_sub(used).saturating_sub(sliced) / PART;
    if part < least { 0 } else { want.min(part) }
}

impl Batch<'_> {
    fn slice(&self, ns: NamespaceId, session: SessionId) -> Result<Slice, StateError> {
        let key = key::slice(ns, session);
        match self.get(&key)? {
            Some(Record::Slice(slice)) => Ok(slice),
            Some(_) => Err(self.shared.misplaced(&key)),
            None => Ok(Slice::default()),
        }
    }

    pub(super) fn sliced(&self, ns: NamespaceId) -> Result<Usage, StateError> {
        let key = key::sliced(ns);
        match self.get(&key)? {
            Some(Record::Sliced(left)) => Ok(left),
            Some(_) => Err(self.shared.misplaced(&key)),
            None => Ok(Usage::default()),
        }
    }

    /// The slices as edits of a session find them.
    pub fn slices_for(
        &self,
        ns: NamespaceId,
        session: SessionId,
        uses_own: bool,
    ) -> Result<Slices, StateError> {
        let (own, all) = (self.slice(ns, session)?, self.sliced(ns)?);
        Ok(Slices { own, all, uses_own, changed: false })
    }

    /// Keeps what the edits have left of them.
    pub fn keep_slices(&mut self, ns: NamespaceId, session: SessionId, slices: &Slices) {
        if slices.changed {
            self.set(key::slice(ns, session), Record::Slice(slices.own));
            self.set(key::sliced(ns), Record::Sliced(slices.all));
        }
    }

    /// See [`crate::command::Command::Delegate`].
    pub fn delegate(
        &mut self,
        session: SessionId,
        want: Usage,
        known: Usage,
        give_back: bool,
    ) -> Result<Result<CommandOutcome, Refusal>, StateError> {
        let Some(record) = self.session(session)? else { return Ok(Err(Refusal::NoSession(session))) };
        let ns = record.namespace;
        let Some((_, config)) = self.namespace(ns)? else { return Ok(Err(Refusal::NoNamespace(ns))) };
        let used = match self.in_tree(ns, config, |view| view.usage_record())? {
            Ok((used, _)) => used,
            // A namespace has a record of its usage; what cannot be read has given the batch up.
            Err(_) => return Err(self.shared.misplaced(&key::usage(ns))),
        };
        let mut slices = self.slices_for(ns, session, true)?;
        let Slices { own, all, changed, .. } = &mut slices;
        if give_back {
            *changed = own.left != Usage::default();
            all.bytes = all.bytes.saturating_sub(own.left.bytes);
            all.inodes = all.inodes.saturating_sub(own.left.inodes);
            own.left = Usage::default();
        } else if own.given == known {
            let bytes = part_of(config.quota_bytes, used.bytes, all.bytes, want.bytes, LEAST.bytes);
            let inodes = part_of(config.quota_inodes, used.inodes, all.inodes, want.inodes, LEAST.inodes);
            *changed = bytes + inodes > 0;
            for amount in [&mut own.given, &mut own.left, all] {
                amount.bytes = amount.bytes.saturating_add(bytes);
                amount.inodes = amount.inodes.saturating_add(inodes);
            }
        }
        self.keep_slices(ns, session, &slices);
        Ok(Ok(CommandOutcome::Delegated(slices.own.given)))
    }

    /// The session is over: what is left of its slice is free.
    pub fn end_slice(&mut self, ns: NamespaceId, session: SessionId) -> Result<(), StateError> {
        let Slice { left, .. } = self.slice(ns, session)?;
        if left != Usage::default() {
            let all = self.sliced(ns)?;
            let all = Usage {
                bytes: all.bytes.saturating_sub(left.bytes),
                inodes: all.inodes.saturating_sub(left.inodes),
            };
            self.set(key::sliced(ns), Record::Sliced(all));
        }
        self.remove(key::slice(ns, session));
        Ok(())
    }

    /// Nothing of any slice is left.
    pub fn forget_slices(&mut self, ns: NamespaceId) -> Result<(), StateError> {
        for (key, _) in self.scan(&key::in_namespace(kind::SLICE, ns), usize::MAX)? {
            self.remove(key);
        }
        self.remove(key::sliced(ns));
        Ok(())
    }
}

#[cfg(test)]
#[path = "slices_tests.rs"]
mod tests;
