//! What the clients do: many small operations on few things, so that they meet.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use gofs_client::{Client, FileHandle, FileLock, OpenFlags};
use gofs_tree::{AttrChange, FileType, FsError, Ino, Mode, Name, NewNode};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::history::{Action, Answer, History, Object, Place};

/// Directories that all clients work in.
pub const DIRECTORIES: usize = 2;
/// Names that they use there.
pub const NAMES: u8 = 4;
/// Files that all clients write to.
pub const FILES: usize = 3;
/// The one of them that is also written in long runs.
const STREAMED: usize = 2;
/// Locks that all clients want.
pub const LOCKS: u64 = 2;
/// Bytes of a block of a file that is in chunks.
const BLOCK_BYTES: usize = 4096;
/// Bytes of a record of the log.
pub const RECORD_BYTES: usize = 64;

/// Where a file's blocks begin, and how long they are: the first file stays in its inode, the others are in chunks,
/// with a block that ends where the first chunk does.
pub fn blocks(file: usize) -> (&'static [u64], usize) {
    match file {
        0 => (&[0, 1024], 1024),
        1 => (&[0, 8192, 60 << 10], BLOCK_BYTES),
        _ => (&[0, 64 << 10, 130 << 10], BLOCK_BYTES),
    }
}

/// A block or record that is all of one value.
pub fn pattern(value: u64, len: usize) -> Bytes {
    value.to_le_bytes().iter().copied().cycle().take(len).collect::<Vec<u8>>().into()
}

/// The value of which it is all; `None`: it is torn.
pub fn value_of(bytes: &[u8]) -> Option<u64> {
    let value = u64::from_le_bytes(bytes.get(..8)?.try_into().ok()?);
    bytes.chunks(8).all(|word| word == &value.to_le_bytes()[..word.len()]).then_some(value)
}

/// Where everything is.
#[derive(Clone, Debug, Default)]
pub struct Places {
    pub directories: Vec<Ino>,
    pub files: Vec<Ino>,
    pub log: Ino,
    /// One for each place of a client.
    pub numbered: Vec<Ino>,
}

/// A client as its tasks see it.
#[derive(Clone)]
pub struct Actor {
    /// Counted over restarts.
    pub id: usize,
    /// Which host's.
    pub place: usize,
    pub client: Arc<Client>,
    pub places: Arc<Places>,
    pub history: History,
    /// Values, names and numbers that were never used.
    pub fresh: Arc<AtomicU64>,
    pub stop: Arc<AtomicBool>,
    /// Longest pause between two operations of a task.
    pub idle: Duration,
    /// Whether names are moved from one directory to another.
    pub moves: bool,
    /// Whether long runs are written.
    pub streams: bool,
    /// The kernel's locks of directories and of files.
    pub turns: Arc<Turns>,
}

/// The kernel's locks of inodes.
#[derive(Default)]
pub struct Turns {
    directories: [RwLock<()>; DIRECTORIES],
    files: [RwLock<()>; FILES],
}

/// Held while an operation is under way.
enum Turn<'a> {
    Alone { _guard: RwLockWriteGuard<'a, ()> },
    Beside { _guard: RwLockReadGuard<'a, ()> },
}

impl<'a> Turn<'a> {
    async fn alone(lock: &'a RwLock<()>) -> Turn<'a> {
        Turn::Alone { _guard: lock.write().await }
    }

    async fn beside(lock: &'a RwLock<()>) -> Turn<'a> {
        Turn::Beside { _guard: lock.read().await }
    }
}

fn name(text: String) -> Name {
    Name::new(text.as_bytes()).expect("a short name without a slash")
}

fn name_of((_, number): Place) -> Name {
    name(format!("n{number}"))
}

/// What an error says about whether something was done.
fn failed(error: FsError) -> Answer {
    match error {
        FsError::NotFound => Answer::Absent,
        FsError::Exists | FsError::WouldBlock => Answer::Exists,
        // What was made may be gone again before its maker hears of it.
        FsError::Stale => Answer::Unknown,
        // Refused before anything was done.
        FsError::NoSpace | FsError::QuotaExceeded => Answer::Refused,
        _ => Answer::Unknown,
    }
}

const MODE: u32 = 0o644 | 0o111;

/// What is recorded of permission bits: 0 is what files are made with.
fn bits_changed(mode: u32) -> u64 {
    u64::from(mode ^ MODE)
}

async fn make(client: &Client, parent: Ino, name: &Name, node: NewNode) -> Result<Ino, FsError> {
    let made = client.create(parent, name, node, Mode::new(MODE), Mode::new(0), 0, 0).await?;
    Ok(made.value.ino)
}

async fn find_or_make(client: &Client, text: String, node: NewNode) -> Result<Ino, FsError> {
    let name = name(text);
    match client.lookup(client.root(), &name).await?.value {
        Some(attr) => Ok(attr.ino),
        None => match make(client, client.root(), &name, node).await {
            Err(FsError::Exists) => {
                let found = client.lookup(client.root(), &name).await?.value;
                found.map(|attr| attr.ino).ok_or(FsError::Stale)
            }
            made => made,
        },
    }
}

/// Makes what is missing of the places, durably.
pub async fn prepare(client: &Client, clients: usize) -> Result<Places, FsError> {
    let mut places = Places::default();
    for at in 0..DIRECTORIES {
        places.directories.push(find_or_make(client, format!("d{at}"), NewNode::Directory).await?);
    }
    for at in 0..FILES {
        places.files.push(find_or_make(client, format!("f{at}"), NewNode::File).await?);
    }
    places.log = find_or_make(client, "log".into(), NewNode::File).await?;
    for at in 0..clients {
        places.numbered.push(find_or_make(client, format!("p{at}"), NewNode::Directory).await?);
    }
    client.sync_all().await?;
    Ok(places)
}

const READ_WRITE: OpenFlags =
    OpenFlags { read: true, write: true, append: false, truncate: false, direct: false, sync: false };

impl Actor {
    fn session(&self) -> u64 {
        self.client.session().0
    }

    async fn record(&self, object: Object, action: Action, work: impl Future<Output = Answer>) -> Answer {
        let _turns = self.turns(object, &action).await;
        let op = self.history.call(self.id, self.session(), self.lost(), object, action);
        let answer = work.await;
        self.history.returned(op, self.session(), self.lost(), answer.clone());
        answer
    }

    /// As the kernel: changes of a directory go one by one, and no question beside them; nor does a write go beside a change of
    /// its file's attributes.
    async fn turns(&self, object: Object, action: &Action) -> Vec<Turn<'_>> {
        let mut turns = Vec::new();
        for at in action.directories() {
            turns.push(match action.changes() {
                true => Turn::alone(&self.turns.directories[at]).await,
                false => Turn::beside(&self.turns.directories[at]).await,
            });
        }
        match object {
            Object::Block(file, _) if action.changes() => {
                turns.push(Turn::beside(&self.turns.files[file]).await)
            }
            Object::Mode(file) if action.changes() => turns.push(Turn::alone(&self.turns.files[file]).await),
            _ => {}
        }
        turns
    }

    /// What the client counts as lost.
    pub fn lost(&self) -> u64 {
        self.client.lost()
    }

    async fn rest(&self, rng: &mut StdRng) {
        let longest = self.idle.as_micros() as u64;
        // Often at once, now and then late.
        let most = if rng.random_range(0..4) == 0 { longest } else { longest / 20 };
        tokio::time::sleep(Duration::from_micros(rng.random_range(0..=most))).await;
    }

    fn goes_on(&self) -> bool {
        !self.stop.load(Ordering::Relaxed)
    }

    fn fresh(&self) -> u64 {
        self.fresh.fetch_add(1, Ordering::Relaxed)
    }

    /// Works with names.
    pub async fn names(self, seed: u64) {
        let mut rng = StdRng::seed_from_u64(seed);
        while self.goes_on() {
            let at = rng.random_range(0..DIRECTORIES);
            let (parent, object) = (self.places.directories[at], Object::Directory(at));
            let place = (at, rng.random_range(0..NAMES));
            let name = name_of(place);
            match rng.random_range(0..10) {
                0..3 => {
                    let work = async {
                        match make(&self.client, parent, &name, NewNode::File).await {
                            Ok(ino) => Answer::Done(Some(ino.0)),
                            Err(error) => failed(error),
                        }
                    };
                    self.record(object, Action::Create(place), work).await;
                }
                3..5 => {
                    let work = async {
                        let done = self.client.unlink(parent, &name).await;
                        done.map_or_else(failed, |()| Answer::Done(None))
                    };
                    self.record(object, Action::Unlink(place), work).await;
                }
                5 => {
                    let into = if self.moves && rng.random() { (at + 1) % DIRECTORIES } else { at };
                    let to = (into, (place.1 + 1) % NAMES);
                    let work = async {
                        let (into, to) = (self.places.directories[into], name_of(to));
                        let done = self.client.rename(parent, &name, into, &to, Default::default()).await;
                        done.map_or_else(failed, |()| Answer::Done(None))
                    };
                    self.record(object, Action::Rename(place, to), work).await;
                }
                6..8 => {
                    let work = async {
                        match self.client.lookup(parent, &name).await {
                            Ok(found) => found.value.map_or(Answer::Absent, |attr| Answer::Found(attr.ino.0)),
                            Err(error) => failed(error),
                        }
                    };
                    self.record(object, Action::Lookup(place), work).await;
                }
                8 => {
                    self.list(at).await;
                }
                _ => {
                    let work = async {
                        let done = self.client.fsync_dir(parent).await;
                        done.map_or(Answer::Unknown, |()| Answer::Done(None))
                    };
                    self.record(object, Action::Sync, work).await;
                }
            }
            self.rest(&mut rng).await;
        }
    }

    /// Lists a shared directory.
    pub async fn list(&self, at: usize) -> Answer {
        let parent = self.places.directories[at];
        let work = async {
            match names_in(&self.client, parent).await {
                Ok(names) => {
                    let number =
                        |name: &[u8]| name.strip_prefix(b"n").map_or(u8::MAX, |digit| digit[0] - b'0');
                    Answer::Names(names.iter().map(|(name, ino)| ((at, number(name)), ino.0)).collect())
                }
                Err(_) => Answer::Unknown,
            }
        };
        self.record(Object::Directory(at), Action::List(at), work).await
    }

    /// Works with the contents of files.
    pub async fn contents(self, seed: u64) {
        let mut rng = StdRng::seed_from_u64(seed);
        while self.goes_on() {
            let file = rng.random_range(0..FILES);
            let Ok(handle) = self.client.open(self.places.files[file], READ_WRITE).await else {
                self.rest(&mut rng).await;
                continue;
            };
            for _ in 0..rng.random_range(1..4) {
                let (offsets, len) = blocks(file);
                let at = rng.random_range(0..offsets.len());
                match rng.random_range(0..12) {
                    0..4 if self.streams && file == STREAMED && rng.random_range(0..4) == 0 => {
                        self.stream(&handle).await;
                    }
                    0..4 => self.write(&handle, file, at, len).await,
                    4..8 => {
                        self.read(&handle, file, at).await;
                    }
                    8 => self.truncate(file, at).await,
                    9 => self.set_mode(file, rng.random_range(0..0o1000)).await,
                    10 => {
                        self.mode(file).await;
                    }
                    _ => self.sync(&handle, Object::Block(file, 0)).await,
                }
                self.rest(&mut rng).await;
            }
            // What it tells is told by the next sync too, or was not to be durable.
            let _ = self.client.flush(&handle).await;
            self.client.release(handle).await;
        }
    }

    async fn write(&self, handle: &FileHandle, file: usize, at: usize, len: usize) {
        let value = self.fresh();
        let offset = blocks(file).0[at];
        let work = async {
            match self.client.write(handle, offset, false, pattern(value, len)).await {
                Ok(written) if written as usize == len => Answer::Done(None),
                Ok(_) => Answer::Unknown,
                Err(error) => failed(error),
            }
        };
        self.record(Object::Block(file, at), Action::Write(value), work).await;
    }

    /// Writes a run over all blocks of a file but the last, and what is between them. It ends before that one begins, which is not
    /// aligned: of a longer run a part of it might be written back and the rest be lost with the client.
    async fn stream(&self, handle: &FileHandle) {
        let _turn = Turn::beside(&self.turns.files[STREAMED]).await;
        let value = self.fresh();
        let [over @ .., end] = blocks(STREAMED).0 else { return };
        let call = |at| {
            let object = Object::Block(STREAMED, at);
            self.history.call(self.id, self.session(), self.lost(), object, Action::Write(value))
        };
        let ops: Vec<usize> = (0..over.len()).map(call).collect();
        let len = *end as usize - BLOCK_BYTES;
        let answer = match self.client.write(handle, 0, false, pattern(value, len)).await {
            Ok(written) if written as usize == len => Answer::Done(None),
            Ok(_) => Answer::Unknown,
            Err(error) => failed(error),
        };
        for op in ops {
            self.history.returned(op, self.session(), self.lost(), answer.clone());
        }
    }

    /// Cuts a file where a block begins: this and the later ones are zeros then.
    async fn truncate(&self, file: usize, first: usize) {
        let _turn = Turn::alone(&self.turns.files[file]).await;
        let offsets = blocks(file).0;
        let call = |at| {
            let object = Object::Block(file, at);
            self.history.call(self.id, self.session(), self.lost(), object, Action::Write(0))
        };
        let ops: Vec<usize> = (first..offsets.len()).map(call).collect();
        let change = AttrChange { size: Some(offsets[first]), ..AttrChange::default() };
        let done = self.client.setattr(self.places.files[file], change).await;
        let answer = done.map_or_else(failed, |_| Answer::Done(None));
        for op in ops {
            self.history.returned(op, self.session(), self.lost(), answer.clone());
        }
    }

    async fn set_mode(&self, file: usize, mode: u32) {
        let work = async {
            let change = AttrChange { mode: Some(Mode::new(mode)), ..AttrChange::default() };
            let done = self.client.setattr(self.places.files[file], change).await;
            done.map_or_else(failed, |_| Answer::Done(None))
        };
        self.record(Object::Mode(file), Action::Write(bits_changed(mode)), work).await;
    }

    /// Asks for a file's permission bits.
    pub async fn mode(&self, file: usize) -> Answer {
        let work = async {
            let attr = self.client.getattr(self.places.files[file]).await;
            attr.map_or(Answer::Unknown, |attr| Answer::Value(bits_changed(attr.value.mode.bits())))
        };
        self.record(Object::Mode(file), Action::Read, work).await
    }

    /// Takes locks, and gives them back.
    pub async fn locks(self, seed: u64) {
        let mut rng = StdRng::seed_from_u64(seed);
        let ino = self.places.files[0];
        while self.goes_on() {
            self.rest(&mut rng).await;
            let at = rng.random_range(0..LOCKS);
            let owner = self.id as u64 + 1;
            let lock = FileLock { owner, start: at, end: at, exclusive: true, pid: 1 };
            let waits = rng.random();
            let patience = if waits { self.idle * rng.random_range(1..4) } else { Duration::from_secs(1) };
            let work = async {
                let asked = self.client.set_lock(ino, lock, waits);
                match tokio::time::timeout(patience, asked).await {
                    Ok(done) => done.map_or_else(failed, |()| Answer::Done(None)),
                    Err(_) => Answer::Unknown,
                }
            };
            let answer = self.record(Object::Lock(at), Action::Lock, work).await;
            if answer == Answer::Done(None) {
                self.rest(&mut rng).await;
            }
            let work = async {
                let done = self.client.unlock(ino, owner, at, at).await;
                done.map_or(Answer::Unknown, |()| Answer::Done(None))
            };
            self.record(Object::Lock(at), Action::Unlock, work).await;
        }
    }

    /// Reads a block.
    pub async fn read(&self, handle: &FileHandle, file: usize, at: usize) -> Answer {
        let (offsets, len) = blocks(file);
        let work = async {
            match self.client.read(handle, offsets[at], len as u32).await {
                Ok(pieces) => {
                    let mut bytes = pieces.value.concat();
                    bytes.resize(len, 0);
                    match value_of(&bytes) {
                        Some(value) => Answer::Value(value),
                        None => {
                            let what = format!("block {at} of file {file}, client {}: {bytes:?}", self.id);
                            crate::report::violation("whole-blocks", &what);
                            Answer::Unknown
                        }
                    }
                }
                Err(_) => Answer::Unknown,
            }
        };
        self.record(Object::Block(file, at), Action::Read, work).await
    }

    async fn sync(&self, handle: &FileHandle, object: Object) {
        let work = async {
            let done = self.client.fsync(handle, false).await;
            done.map_or(Answer::Unknown, |()| Answer::Done(None))
        };
        self.record(object, Action::Sync, work).await;
    }

    /// Appends records to the log.
    pub async fn append(self, seed: u64) {
        let mut rng = StdRng::seed_from_u64(seed);
        let flags = OpenFlags { append: true, ..READ_WRITE };
        while self.goes_on() {
            self.rest(&mut rng).await;
            let Ok(handle) = self.client.open(self.places.log, flags).await else { continue };
            for _ in 0..rng.random_range(1..5) {
                let value = self.fresh();
                let work = async {
                    match self.client.write(&handle, 0, true, pattern(value, RECORD_BYTES)).await {
                        Ok(written) if written as usize == RECORD_BYTES => Answer::Done(None),
                        Ok(_) => Answer::Unknown,
                        Err(error) => failed(error),
                    }
                };
                self.record(Object::Log, Action::Append(value), work).await;
                self.rest(&mut rng).await;
            }
            if rng.random() {
                self.sync(&handle, Object::Log).await;
            }
            // As above.
            let _ = self.client.flush(&handle).await;
            self.client.release(handle).await;
        }
    }

    /// Makes numbered files, one after the other.
    pub async fn number(self, seed: u64) {
        let mut rng = StdRng::seed_from_u64(seed);
        let (parent, object) = (self.places.numbered[self.place], Object::Numbered(self.place));
        while self.goes_on() {
            let number = self.fresh();
            let work = async {
                match make(&self.client, parent, &name(number.to_string()), NewNode::File).await {
                    Ok(ino) => Answer::Done(Some(ino.0)),
                    Err(error) => failed(error),
                }
            };
            self.record(object, Action::Number(number), work).await;
            if rng.random_range(0..6) == 0 {
                let work = async {
                    let done = self.client.fsync_dir(parent).await;
                    done.map_or(Answer::Unknown, |()| Answer::Done(None))
                };
                self.record(object, Action::Sync, work).await;
            }
            self.rest(&mut rng).await;
        }
    }
}

/// All names of a directory.
pub async fn names_in(client: &Client, parent: Ino) -> Result<Vec<(Vec<u8>, Ino)>, FsError> {
    let dir = client.opendir(parent).await?;
    let (mut index, mut names) = (0, Vec::new());
    loop {
        let page = client.readdir(&dir, index, 1000, false).await?;
        let Some(last) = page.last() else { return Ok(names) };
        index = last.next;
        let real = page.into_iter().filter(|item| item.name != b"." && item.name != b"..");
        names.extend(real.map(|item| {
            debug_assert!(
                item.file_type == FileType::Directory || item.file_type == FileType::File,
                "known types"
            );
            (item.name, item.ino)
        }));
    }
}
