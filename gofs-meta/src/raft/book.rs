//! Where the members are, and whether this server is one of them still.
//!
//! Knows three addresses of a member at most: the one that the member itself names in every message, the one in the
//! configuration, and the one in the log. The first is the newest. None has to be right: whoever is there answers only
//! what is meant for it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};

use gofs_tree::MetaServerId;
use parking_lot::Mutex;
use tokio::sync::watch;
use tonic::Status;

/// Metadata of a refusal: the one that asks was removed from the cluster.
pub(crate) const REMOVED_METADATA: &str = "gofs-removed";

/// See the module.
pub(crate) struct AddressBook {
    own: MetaServerId,
    /// Where the others shall reach this server; empty: it does not know.
    address: String,
    /// This server is a member. An empty one that has a member's id must not be taken for it.
    introduced: AtomicBool,
    configured: BTreeMap<MetaServerId, String>,
    /// What members said of themselves.
    said: Mutex<BTreeMap<MetaServerId, String>>,
    removed: watch::Sender<bool>,
}

impl AddressBook {
    /// `address`: empty where this server does not know how others reach it.
    pub fn new(
        own: MetaServerId,
        address: String,
        configured: BTreeMap<MetaServerId, String>,
    ) -> AddressBook {
        AddressBook {
            own,
            address,
            introduced: AtomicBool::new(false),
            configured,
            said: Mutex::default(),
            removed: watch::Sender::new(false),
        }
    }

    /// This server.
    pub fn own(&self) -> MetaServerId {
        self.own
    }

    /// This server's log has it as a member: it says where it is from now on.
    pub fn introduce(&self) {
        self.introduced.store(true, Ordering::Release);
    }

    /// What this server tells the others of where it is; empty: nothing.
    pub fn announced(&self) -> &str {
        if self.introduced.load(Ordering::Acquire) { &self.address } else { "" }
    }

    /// A member said where it is.
    pub fn heard(&self, from: MetaServerId, address: &str) {
        if from.0 == 0 || from == self.own || address.is_empty() {
            return;
        }
        let mut said = self.said.lock();
        if said.get(&from).is_none_or(|known| known != address) {
            said.insert(from, address.to_owned());
        }
    }

    /// What that member said last, or this server says.
    pub fn said(&self, id: MetaServerId) -> Option<String> {
        if id == self.own {
            return Some(self.address.clone()).filter(|address| !address.is_empty());
        }
        self.said.lock().get(&id).cloned()
    }

    /// Addresses to try, in order, each once.
    pub fn candidates(&self, id: MetaServerId, logged: Option<&str>) -> Vec<String> {
        let mut candidates = Vec::new();
        let known = [self.said(id), self.configured.get(&id).cloned(), logged.map(str::to_owned)];
        for address in known.into_iter().flatten() {
            if !candidates.contains(&address) {
                candidates.push(address);
            }
        }
        candidates
    }

    /// A member refused what this server asked.
    pub fn told(&self, status: &Status) {
        if status.metadata().contains_key(REMOVED_METADATA) {
            self.set_removed();
        }
    }

    /// This server was removed.
    pub fn set_removed(&self) {
        self.removed.send_if_modified(|removed| !std::mem::replace(removed, true));
    }

    /// Turns true when this server was removed from the cluster.
    pub fn removed(&self) -> watch::Receiver<bool> {
        self.removed.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_member_says_of_itself_is_tried_before_what_others_say() {
        let two = MetaServerId(2);
        let book = AddressBook::new(MetaServerId(1), "a:1".into(), BTreeMap::from([(two, "conf:2".into())]));
        assert_eq!(book.candidates(two, Some("log:2")), ["conf:2", "log:2"]);
        book.heard(two, "");
        book.heard(two, "said:2");
        assert_eq!(book.candidates(two, Some("log:2")), ["said:2", "conf:2", "log:2"]);
        book.heard(two, "log:2");
        assert_eq!(book.candidates(two, Some("log:2")), ["log:2", "conf:2"]);
        assert_eq!(book.candidates(MetaServerId(3), None), Vec::<String>::new());
        assert_eq!((book.said(MetaServerId(1)).as_deref(), book.announced()), (Some("a:1"), ""));
        book.introduce();
        assert_eq!(book.announced(), "a:1");
    }

    #[test]
    fn only_a_refusal_that_says_so_means_removed() {
        let book = AddressBook::new(MetaServerId(1), String::new(), BTreeMap::new());
        book.told(&Status::failed_precondition("another cluster"));
        assert!(!*book.removed().borrow());
        let mut status = Status::failed_precondition("removed");
        status.metadata_mut().insert(REMOVED_METADATA, "1".parse().unwrap());
        book.told(&status);
        assert!(*book.removed().borrow());
    }
}
