//! Which inodes the kernel knows, or is about to know because the reply is on its way.
//!
//! The kernel counts the entries it was given for an inode and returns the count by FORGET.
//! An invalidation that finds no inode is done only if this table does not have it either.

use std::collections::HashMap;
use std::collections::hash_map::{Entry, RandomState};
use std::hash::BuildHasher;

use fuser::INodeNo;
use parking_lot::Mutex;

/// Parts of the table with a lock each, so that session threads rarely meet.
const SHARDS: usize = 16;

/// Look-up counts of the kernel.
#[derive(Default)]
pub struct Lookups {
    shards: [Mutex<HashMap<INodeNo, u64>>; SHARDS],
    hasher: RandomState,
}

impl Lookups {
    fn shard(&self, node: INodeNo) -> &Mutex<HashMap<INodeNo, u64>> {
        &self.shards[self.hasher.hash_one(node) as usize % SHARDS]
    }

    /// An entry for `node` is about to be sent: call before the reply.
    pub fn sent(&self, node: INodeNo) {
        *self.shard(node).lock().entry(node).or_insert(0) += 1;
    }

    /// The kernel gave `count` entries back.
    pub fn forgotten(&self, node: INodeNo, count: u64) {
        if let Entry::Occupied(mut entry) = self.shard(node).lock().entry(node) {
            if *entry.get() <= count {
                entry.remove();
            } else {
                *entry.get_mut() -= count;
            }
        }
    }

    /// Whether the kernel has entries of `node`; it always has the root.
    pub fn known(&self, node: INodeNo) -> bool {
        node == INodeNo::ROOT || self.shard(node).lock().contains_key(&node)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_inode_is_known_until_all_its_entries_came_back() {
        let lookups = Lookups::default();
        let node = INodeNo(7);
        assert!(!lookups.known(node) && lookups.known(INodeNo::ROOT));
        lookups.sent(node);
        lookups.sent(node);
        lookups.forgotten(node, 1);
        assert!(lookups.known(node));
        lookups.forgotten(node, 1);
        assert!(!lookups.known(node));
        lookups.forgotten(node, 1);
        assert!(!lookups.known(node));
    }
}
