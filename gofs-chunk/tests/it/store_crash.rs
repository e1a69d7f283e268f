//! The crash rule: what was durable is readable after any power cut, and what was acknowledged is there
//! after any kill, wherever in an operation it strikes, and also when it strikes the recovery.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use gofs_chunk::store::{
    Ack, BLOCK_LEN, BootId, Doubt, FileWatch, Store, StoreError, StoreOptions, WriteMode,
};
use gofs_tree::{ChunkId, ChunkVersion};
use rand::RngExt;
use rand::rngs::StdRng;

use super::power::{Cut, Power};
use super::support::{Model, Seed, bytes, options, range, rng, seeds};

const CHUNK_BYTES: usize = 5 << 20;
const BLOCKS: usize = CHUNK_BYTES / BLOCK_LEN;

/// A chunk, and what a cut may leave of it.
#[derive(Clone, Debug, Default)]
struct Expected {
    /// As it is while nothing fails.
    now: Model,
    /// Checksums of the contents that each block may have after a power cut; the last is the present one.
    blocks: Vec<Vec<u32>>,
    /// What blocks may be after a kill besides what they are: those of the operation under way.
    under_way: BTreeMap<usize, u32>,
    /// Made and not synced since.
    may_be_missing: bool,
}

impl Expected {
    fn content(&self, block: usize) -> u32 {
        crc32c::crc32c(&self.now.read(block * BLOCK_LEN, BLOCK_LEN))
    }

    fn fresh() -> Expected {
        let zeros = crc32c::crc32c(&[0; BLOCK_LEN]);
        Expected {
            now: Model { version: 1, ..Model::default() },
            blocks: vec![vec![zeros]; BLOCKS],
            under_way: BTreeMap::new(),
            may_be_missing: true,
        }
    }

    /// An operation that turns `now` into `then` begins.
    fn begin(&mut self, then: &Model, offset: usize, len: usize) {
        for block in offset / BLOCK_LEN..(offset + len).div_ceil(BLOCK_LEN) {
            let content = crc32c::crc32c(&then.read(block * BLOCK_LEN, BLOCK_LEN));
            self.under_way.insert(block, content);
            self.blocks[block].push(content);
        }
    }

    fn acknowledged(&mut self, then: Model) {
        self.now = then;
        self.under_way.clear();
    }

    fn synced(&mut self) {
        for block in 0..BLOCKS {
            let present = self.content(block);
            self.blocks[block] = vec![present];
        }
        self.may_be_missing = false;
    }
}

type Chunks = BTreeMap<u64, Expected>;

fn is_dead<T>(result: Result<T, StoreError>) -> Option<T> {
    match result {
        Ok(value) => Some(value),
        Err(StoreError::Io { .. } | StoreError::DiskFailed { .. }) => None,
        Err(error) => panic!("{error}"),
    }
}

/// One operation; `None` where the process died in it.
fn step(rng: &mut StdRng, store: &Store, chunks: &mut Chunks, gone: &mut Vec<u64>) -> Option<()> {
    let chunk = rng.random_range(1..5u64);
    let id = ChunkId(chunk);
    let version = ChunkVersion(chunks.get(&chunk).map_or(1, |expected| expected.now.version));
    let (offset, len) = range(rng, CHUNK_BYTES);
    match rng.random_range(0..20) {
        0..=10 => {
            let data = bytes(rng, len);
            gone.retain(|gone| *gone != chunk);
            let expected = chunks.entry(chunk).or_insert_with(Expected::fresh);
            let mut then = expected.now.clone();
            then.write(offset, &data);
            expected.begin(&then, offset, len);
            is_dead(store.write(id, version, offset as u32, &data, WriteMode::Create, Ack::Cached))?;
            expected.acknowledged(then);
        }
        11..=13 => {
            let Some(expected) = chunks.get_mut(&chunk) else { return Some(()) };
            let mut then = expected.now.clone();
            then.punch(offset, len);
            expected.begin(&then, offset, len);
            is_dead(store.punch(id, version, offset as u32, len as u32, Ack::Cached))?;
            expected.acknowledged(then);
        }
        14..=16 => {
            is_dead(store.sync(&[id]))?;
            if let Some(expected) = chunks.get_mut(&chunk) {
                expected.synced();
            }
        }
        17 => is_dead(store.close())?,
        18 => {
            for disk in store.disks() {
                is_dead(disk.maintain())?;
            }
        }
        _ => {
            if rng.random_bool(0.3) && chunks.contains_key(&chunk) {
                gone.push(chunk);
                is_dead(store.delete(id, Some(version)))?;
                chunks.remove(&chunk);
                gone.retain(|gone| *gone != chunk);
            }
        }
    }
    Some(())
}

/// Compares what is there with what may be, and takes what is there for durable from now on.
fn check(store: &Store, chunks: &mut Chunks, gone: &mut Vec<u64>, cut: Cut) {
    // Whether the deletion under way took place is open.
    for chunk in gone.drain(..) {
        if store.stat(ChunkId(chunk)).is_err() {
            chunks.remove(&chunk);
        }
    }
    chunks.retain(|chunk, expected| {
        let id = ChunkId(*chunk);
        if let Err(StoreError::NoChunk { .. }) = store.stat(id) {
            let only_under_way = expected.now.blocks.is_empty();
            assert!(expected.may_be_missing && (cut != Cut::Kill || only_under_way), "chunk {chunk} is gone");
            return false;
        }
        let doubtful = store.list().iter().any(|info| info.chunk == id && info.doubtful);
        // Who asks for its version is not given one in doubt.
        let asked = if doubtful { 0 } else { expected.now.version };
        let read = store.read(id, ChunkVersion(asked), 0, CHUNK_BYTES as u32);
        let read = read.unwrap_or_else(|error| panic!("{cut:?}: {error}"));
        for (block, content) in read.chunks_exact(BLOCK_LEN).enumerate() {
            let found = crc32c::crc32c(content);
            let allowed = match cut {
                Cut::Kill => {
                    found == expected.content(block) || expected.under_way.get(&block) == Some(&found)
                }
                _ => expected.blocks[block].contains(&found),
            };
            assert!(allowed, "{cut:?}: block {block} of chunk {chunk} is neither old nor new");
            let lacks = found != expected.content(block) && expected.under_way.get(&block) != Some(&found);
            assert!(!lacks || doubtful, "{cut:?}: block {block} of chunk {chunk} is old and nobody knows");
        }
        let extents = store.extents(id, ChunkVersion(0)).unwrap();
        let mut now = Model { version: expected.now.version, ..Model::default() };
        for range in &extents {
            let (from, to) = (range.first as usize * BLOCK_LEN, range.end() as usize * BLOCK_LEN);
            now.write(from, &read[from..to]);
        }
        assert!(now.read(0, CHUNK_BYTES) == read, "{cut:?}: bytes outside of the extents of chunk {chunk}");
        assert_eq!(
            store.stat(id).unwrap().blocks as usize,
            now.blocks.len(),
            "{cut:?}: blocks of chunk {chunk}"
        );
        expected.now = now;
        expected.under_way.clear();
        // What recovery has decided stays decided, but only what was synced may not be lost by the next cut.
        expected.synced();
        true
    });
    assert_eq!(store.list().len(), chunks.len(), "chunks from nowhere");
}

fn run(seed: u64) {
    let _seed = Seed(seed);
    // Shown where the test fails.
    let _ = tracing_subscriber::fmt().with_ansi(false).with_test_writer().try_init();
    let mut rng = rng(seed);
    let root = tempfile::tempdir().unwrap();
    let mut dir: PathBuf = root.path().join("0");
    let mut chunks = Chunks::new();
    let mut gone = Vec::new();
    let mut cut = Cut::Kill;
    let mut power = Arc::new(Power::new(400));
    let mut boot = BootId(1);
    for round in 1..=6 {
        let mut options = options();
        options.watch = Some(power.clone());
        options.boot = boot;
        match Store::open(std::slice::from_ref(&dir), &options) {
            Ok(store) => {
                check(&store, &mut chunks, &mut gone, cut);
                while step(&mut rng, &store, &mut chunks, &mut gone).is_some() {}
                assert!(power.is_dead());
                cut = Cut::LoseAll;
            }
            Err(error) => assert!(power.is_dead(), "{error}"),
        }
        // A cut in the recovery leaves what the cut before it had left, or what recovery made of that.
        let again = [Cut::Kill, Cut::LoseAll, Cut::Sectors, Cut::Pages, Cut::Files][rng.random_range(0..5)];
        if cut == Cut::LoseAll {
            cut = again;
        }
        let next = root.path().join(round.to_string());
        tracing::info!(round, ?again, "cut");
        if again != Cut::Kill {
            boot.0 += 1;
        }
        // Recovery may be cut as well.
        let budget = rng.random_range(1..400);
        power = Arc::new(power.cut(&dir, &next, again, budget, &mut rng));
        std::fs::remove_dir_all(&dir).unwrap();
        dir = next;
    }
    let store = Store::open(&[dir], &StoreOptions { boot, ..options() }).unwrap();
    check(&store, &mut chunks, &mut gone, cut);
}

#[test]
fn durable_blocks_survive_power_cuts_and_acknowledged_ones_kills() {
    for seed in seeds(16) {
        run(seed);
    }
}

/// A chunk that grew block by block has a file of its own, and still all its blocks in the log.
#[test]
fn the_file_of_a_chunk_may_lose_its_header_before_anything_is_in_it() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("disk");
    let (chunk, version) = (ChunkId(1), ChunkVersion(1));
    let store = Store::open(std::slice::from_ref(&dir), &options()).unwrap();
    let blocks = options().small_blocks + 1;
    let write = |store: &Store, block: u32| {
        store.write(chunk, version, block * BLOCK_LEN as u32, &[7; BLOCK_LEN], WriteMode::Create, Ack::Synced)
    };
    for block in 0..blocks {
        write(&store, 2 * block).unwrap();
    }
    drop(store);
    let is_file = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "chunk");
    let below = |dir: PathBuf| std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let file = below(dir.join("chunks")).flat_map(below).find(is_file).unwrap();
    std::fs::OpenOptions::new().write(true).truncate(true).open(file).unwrap();
    let store = Store::open(&[dir], &StoreOptions { boot: BootId(2), ..options() }).unwrap();
    write(&store, 1).unwrap();
    let read = store.read(chunk, ChunkVersion(0), 0, 2 * BLOCK_LEN as u32).unwrap();
    assert!(read.iter().all(|byte| *byte == 7));
}

#[test]
fn only_chunks_that_may_lack_writes_are_in_doubt_after_a_power_cut() {
    let root = tempfile::tempdir().unwrap();
    let dir = [root.path().join("disk")];
    let boot = |boot| StoreOptions { boot: BootId(boot), ..options() };
    let doubtful = |store: &Store| store.list().iter().map(|info| info.doubtful).collect::<Vec<_>>();
    let (chunk, version) = (ChunkId(1), ChunkVersion(1));
    let write =
        |store: &Store, ack| store.write(chunk, version, 0, b"bytes", WriteMode::Create, ack).unwrap();

    let store = Store::open(&dir, &boot(0)).unwrap();
    write(&store, Ack::Synced);
    store.sync(&[chunk]).unwrap();
    store.close().unwrap();
    drop(store);
    let store = Store::open(&dir, &boot(1)).unwrap();
    assert_eq!(doubtful(&store), [false], "made by a synced write, and stopped");
    write(&store, Ack::Cached);
    drop(store);
    let store = Store::open(&dir, &boot(1)).unwrap();
    assert_eq!(doubtful(&store), [false], "a kill loses nothing");
    assert_ne!(store.incarnation(), BootId(2).incarnation());
    store.close().unwrap();
    drop(store);
    let store = Store::open(&dir, &boot(2)).unwrap();
    assert_eq!(doubtful(&store), [false], "a clean stop loses nothing");
    write(&store, Ack::Synced);
    store.sync(&[chunk]).unwrap();
    drop(store);
    let store = Store::open(&dir, &boot(3)).unwrap();
    assert_eq!(doubtful(&store), [false], "what was synced is there");
    write(&store, Ack::Cached);
    drop(store);
    let store = Store::open(&dir, &boot(4)).unwrap();
    assert_eq!(doubtful(&store), [true]);
    drop(store);
    let store = Store::open(&dir, &boot(4)).unwrap();
    assert_eq!(doubtful(&store), [true], "it stays in doubt");
    let read = |version| store.read(chunk, version, 0, 5);
    assert!(
        matches!(read(version), Err(StoreError::Doubtful { .. })),
        "who asks for a version expects all of it"
    );
    assert_eq!(read(ChunkVersion(0)).unwrap(), b"bytes", "better than nothing");
    let synced = |asked, written| store.check_sync(chunk, asked, written);
    let (any, lossy) = (ChunkVersion(0), ChunkVersion(1 << ChunkVersion::COUNT_BITS));
    for (asked, written) in [(version, any), (any, version), (version, version)] {
        let refused = synced(asked, written);
        assert!(matches!(refused, Err(StoreError::Doubtful { .. })), "{asked} {written}: {refused:?}");
    }
    synced(any, any).unwrap();
    let raised = |doubt| store.set_version(chunk, version, lossy, doubt);
    assert!(matches!(raised(Doubt::Refused), Err(StoreError::Doubtful { .. })), "by who does not know of it");
    assert_eq!(doubtful(&store), [true]);
    raised(Doubt::Ends).unwrap();
    assert_eq!(doubtful(&store), [false], "until the version moves");
    assert_eq!(read(lossy).unwrap(), b"bytes");
    for asked in [any, version, lossy] {
        let refused = synced(asked, version);
        assert!(
            matches!(refused, Err(StoreError::Lost { .. })),
            "what was written at {version}: {refused:?}"
        );
    }
    synced(version, any).unwrap();
    synced(lossy, lossy).unwrap();
    assert!(matches!(synced(lossy, lossy.next()), Err(StoreError::Stale { .. })));
}

/// A small file system of its own, unmounted in the end.
struct Mounted<'a>(&'a Path);

impl<'a> Mounted<'a> {
    fn new(image: &Path, dir: &'a Path) -> Option<Mounted<'a>> {
        let status = Command::new("mount").args(["-t", "ext4", "-o", "loop"]).args([image, dir]).status();
        status.is_ok_and(|status| status.success()).then_some(Mounted(dir))
    }
}

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        let status = Command::new("umount").arg(self.0).status();
        assert!(status.is_ok_and(|status| status.success()) || std::thread::panicking());
    }
}

#[test]
fn chunks_that_may_lack_writes_are_in_doubt_when_their_disk_was_mounted_anew() {
    let root = tempfile::tempdir().unwrap();
    let (image, dir) = (root.path().join("image"), root.path().join("mounted"));
    std::fs::create_dir(&dir).unwrap();
    File::create(&image).unwrap().set_len(64 << 20).unwrap();
    let made = Command::new("mkfs.ext4").arg("-q").arg(&image).status();
    let mounted = made.is_ok_and(|made| made.success()).then(|| Mounted::new(&image, &dir)).flatten();
    let Some(mounted) = mounted else {
        return eprintln!("not run: a file system cannot be mounted without root and mkfs.ext4");
    };
    let open = || Store::open(&[dir.join("disk")], &options()).unwrap();
    open().write(ChunkId(1), ChunkVersion(1), 0, b"bytes", WriteMode::Create, Ack::Cached).unwrap();
    assert!(!open().list()[0].doubtful, "a kill loses nothing");
    drop(mounted);
    let _mounted = Mounted::new(&image, &dir).unwrap();
    assert!(open().list()[0].doubtful);
}

/// The kernel tells once that a file could not be synced.
struct OneSyncFails {
    power: Power,
    due: AtomicBool,
}

impl FileWatch for OneSyncFails {
    fn will_write(&self, path: &Path, file: &File, at: u64, bytes: &[u8]) -> io::Result<()> {
        self.power.will_write(path, file, at, bytes)
    }
    fn will_sync(&self, _: &Path) -> io::Result<()> {
        if self.due.swap(false, Ordering::Relaxed) { Err(io::Error::other("lost")) } else { Ok(()) }
    }
    fn synced(&self, path: &Path) {
        self.power.synced(path);
    }
    fn created(&self, path: &Path) {
        self.power.created(path);
    }
    fn dir_synced(&self, path: &Path) {
        self.power.dir_synced(path);
    }
}

#[test]
fn chunks_that_may_lack_writes_since_a_sync_failed_are_in_doubt_without_a_power_cut() {
    let (chunk, version) = (ChunkId(1), ChunkVersion(1));
    for at_start in [false, true] {
        let root = tempfile::tempdir().unwrap();
        let (dir, after) = (root.path().join("a"), root.path().join("b"));
        let disk = Arc::new(OneSyncFails { power: Power::new(u64::MAX), due: false.into() });
        let options = |watch| StoreOptions { watch, boot: BootId(1), ..options() };
        let open = || Store::open(std::slice::from_ref(&dir), &options(Some(disk.clone())));
        let store = open().unwrap();
        store.write(chunk, version, 0, b"durable", WriteMode::Create, Ack::Cached).unwrap();
        store.sync(&[chunk]).unwrap();
        store.write(chunk, version, 0, b"written", WriteMode::Create, Ack::Cached).unwrap();
        disk.due.store(true, Ordering::Relaxed);
        if at_start {
            drop(store);
            assert!(open().is_err());
        } else {
            assert!(store.sync(&[chunk]).is_err());
        }
        disk.power.cut(&dir, &after, Cut::LoseAll, 1, &mut rng(1));
        for round in 0..2 {
            let store = Store::open(std::slice::from_ref(&after), &options(None)).unwrap();
            assert!(store.list()[0].doubtful, "at the start: {at_start}, round {round}");
            assert_eq!(store.read(chunk, ChunkVersion(0), 0, 7).unwrap(), b"durable");
            if round == 1 {
                store.set_version(chunk, version, version.next(), Doubt::Ends).unwrap();
            }
        }
        let store = Store::open(&[after], &options(None)).unwrap();
        assert!(!store.list()[0].doubtful, "decided once");
    }
}

#[test]
fn the_checker_notices_a_lost_sync() {
    // A sync that is acknowledged and not done must be found out, else the test above proves nothing.
    struct Liar(Power);
    impl FileWatch for Liar {
        fn will_write(&self, path: &Path, file: &File, at: u64, bytes: &[u8]) -> io::Result<()> {
            self.0.will_write(path, file, at, bytes)
        }
    }
    let root = tempfile::tempdir().unwrap();
    let (dir, after) = (root.path().join("a"), root.path().join("b"));
    let liar = Arc::new(Liar(Power::new(u64::MAX)));
    let mut options = options();
    options.watch = Some(liar.clone());
    let store = Store::open(std::slice::from_ref(&dir), &options).unwrap();
    store.write(ChunkId(1), ChunkVersion(1), 0, b"durable?", WriteMode::Create, Ack::Cached).unwrap();
    store.sync(&[ChunkId(1)]).unwrap();
    liar.0.cut(&dir, &after, Cut::LoseAll, 1, &mut rng(1));
    drop(store);
    let lost = match Store::open(&[after], &super::support::options()) {
        Ok(store) => store.read(ChunkId(1), ChunkVersion(1), 0, 8).is_err(),
        Err(_) => true,
    };
    assert!(lost);
}
