//! Decoded records in memory, within a budget of bytes, the least recently used go first.
//!
//! Write-through with one writer: [`Cache::begin_write`] takes the keys about to change out and
//! keeps readers from putting old values back, [`Cache::end_write`] puts the new values in.
//! So no reader ever gets a value that is older than one that any reader had before.

use std::hash::{BuildHasher, RandomState};

use lru::LruCache;
use parking_lot::Mutex;

use super::key::Key;
use super::record::Record;

const SHARDS: usize = 16;
/// What an item takes besides its key and record: hash table, list links, allocations.
const ITEM_OVERHEAD_BYTES: usize = 128;

pub(crate) struct Cache {
    shards: Vec<Mutex<Shard>>,
    hasher: RandomState,
    shard_budget_bytes: usize,
}

struct Shard {
    /// `None` is a record that is known not to exist.
    items: LruCache<Key, Option<Record>>,
    bytes: usize,
    /// Moves at the begin and at the end of each write; odd while one goes on.
    epoch: u64,
}

/// What a reader saw before it went to the disk.
pub(crate) struct Miss {
    shard: usize,
    epoch: u64,
}

impl Cache {
    pub fn new(budget_bytes: usize) -> Self {
        let shard = || Mutex::new(Shard { items: LruCache::unbounded(), bytes: 0, epoch: 0 });
        Cache {
            shards: (0..SHARDS).map(|_| shard()).collect(),
            hasher: RandomState::new(),
            shard_budget_bytes: budget_bytes / SHARDS,
        }
    }

    fn shard_of(&self, key: &[u8]) -> usize {
        self.hasher.hash_one(key) as usize % SHARDS
    }

    /// The record, or what to say in [`Self::fill`] once it was read.
    pub fn get(&self, key: &[u8]) -> Result<Option<Record>, Miss> {
        let at = self.shard_of(key);
        let mut shard = self.shards[at].lock();
        match shard.items.get(key) {
            Some(record) => Ok(record.clone()),
            None => Err(Miss { shard: at, epoch: shard.epoch }),
        }
    }

    /// Remembers what was read after the miss, unless a write came in between.
    pub fn fill(&self, miss: &Miss, key: &[u8], record: Option<Record>) {
        let mut shard = self.shards[miss.shard].lock();
        if shard.epoch == miss.epoch && miss.epoch.is_multiple_of(2) {
            shard.put(key.to_vec(), record, self.shard_budget_bytes);
        }
    }

    /// Before `keys` change on disk. Must be followed by [`Self::end_write`] with the same keys.
    pub fn begin_write<'a>(&self, keys: impl Iterator<Item = &'a Key>) {
        let mut touched = [false; SHARDS];
        for key in keys {
            let at = self.shard_of(key);
            let mut shard = self.shards[at].lock();
            if !touched[at] {
                touched[at] = true;
                shard.epoch += 1;
            }
            shard.remove(key);
        }
    }

    /// After they changed.
    pub fn end_write(&self, changes: impl Iterator<Item = (Key, Option<Record>)>) {
        let mut touched = [false; SHARDS];
        for (key, record) in changes {
            let at = self.shard_of(&key);
            touched[at] = true;
            self.shards[at].lock().put(key, record, self.shard_budget_bytes);
        }
        for (shard, _) in self.shards.iter().zip(touched).filter(|(_, touched)| *touched) {
            shard.lock().epoch += 1;
        }
    }

    /// Forgets everything; what readers fetch meanwhile is not kept.
    pub fn clear(&self) {
        for shard in &self.shards {
            let mut shard = shard.lock();
            shard.items.clear();
            shard.bytes = 0;
            shard.epoch += 2;
        }
    }

    /// Bytes held, by the same estimate as the budget.
    pub fn bytes(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().bytes).sum()
    }
}

fn weight(key: &Key, record: &Option<Record>) -> usize {
    key.len() + record.as_ref().map_or(0, Record::weight) + ITEM_OVERHEAD_BYTES
}

impl Shard {
    fn put(&mut self, key: Key, record: Option<Record>, budget_bytes: usize) {
        let added = weight(&key, &record);
        if added > budget_bytes {
            self.remove(&key);
            return;
        }
        if let Some((old_key, old)) = self.items.push(key, record) {
            self.bytes -= weight(&old_key, &old);
        }
        self.bytes += added;
        while self.bytes > budget_bytes {
            let Some((old_key, old)) = self.items.pop_lru() else { break };
            self.bytes -= weight(&old_key, &old);
        }
    }

    fn remove(&mut self, key: &[u8]) {
        if let Some((key, record)) = self.items.pop_entry(key) {
            self.bytes -= weight(&key, &record);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(bytes: usize) -> Option<Record> {
        Some(Record::Xattr(vec![0; bytes].into()))
    }

    #[test]
    fn the_budget_holds_and_the_oldest_go_first() {
        let cache = Cache::new(SHARDS * 4096);
        for id in 0..10_000u32 {
            let key = id.to_be_bytes().to_vec();
            let Err(miss) = cache.get(&key) else { panic!("not there yet") };
            cache.fill(&miss, &key, record(100));
            assert!(cache.bytes() <= SHARDS * 4096);
        }
        assert!(cache.bytes() > SHARDS * 3000);
        assert!(cache.get(&9_999u32.to_be_bytes()).is_ok());
        assert!(cache.get(&0u32.to_be_bytes()).is_err());
    }

    #[test]
    fn a_reader_that_was_overtaken_by_a_write_does_not_fill() {
        let cache = Cache::new(1 << 20);
        let key = b"k".to_vec();
        let Err(before) = cache.get(&key) else { panic!() };
        cache.begin_write([&key].into_iter());
        let Err(during) = cache.get(&key) else { panic!() };
        cache.fill(&before, &key, record(1));
        cache.fill(&during, &key, record(2));
        assert!(cache.get(&key).is_err());
        cache.end_write([(key.clone(), record(3))].into_iter());
        cache.fill(&before, &key, record(1));
        cache.fill(&during, &key, record(2));
        assert_eq!(cache.get(&key).ok().flatten(), record(3));
    }

    #[test]
    fn a_removed_record_is_known_to_be_missing() {
        let cache = Cache::new(1 << 20);
        let key = b"k".to_vec();
        cache.begin_write([&key].into_iter());
        cache.end_write([(key.clone(), None)].into_iter());
        assert_eq!(cache.get(&key).ok(), Some(None));
    }
}
