//! `Check`: whether the state agrees with itself and with what the ChunkServers have.
//!
//! Reads while others write, so what one walk finds may be a moment's view: a problem counts
//! when it is still found after the state was walked again, or when nothing was applied meanwhile.
//! Holds a few dozen bytes for each inode of one namespace at a time. Where it is known what would set a problem right, the
//! problem says so; [`repair`](super::repair) does it.

use std::collections::{HashMap, HashSet};

use gofs_proto::cluster;
use gofs_tree::{ChunkId, DirEntry, FileType, Ino, Name, NamespaceId, ROOT_INO, Usage};
use tonic::Status;

use super::problem::{Problem, name_files};
use super::{Admin, unreadable};
use crate::{
    chunks::{Census, Health},
    repair::{Count, Repair, pair},
    state::{ChunkRecord, NamespaceRecord},
};

/// Walks until the problems found stand still.
const WALKS_MAX: usize = 3;
/// Problems told; the rest are counted.
const PROBLEMS_MAX: usize = 1000;
/// Records read at once.
const BATCH: usize = 4096;

/// What a look at everything found.
pub(super) struct Found {
    walk: Walk,
    pub problems: Vec<Problem>,
    census: Census,
}

impl Found {
    /// With what was repaired, and what could not be.
    pub fn reply(self, repaired: Vec<String>, refused: Vec<String>) -> cluster::CheckReply {
        let Found { walk, problems, census } = self;
        let mut problems: Vec<String> = problems.into_iter().map(Problem::into_text).collect();
        if problems.len() > PROBLEMS_MAX {
            let more = problems.len() - PROBLEMS_MAX;
            problems.truncate(PROBLEMS_MAX);
            problems.push(format!("and {more} more problems"));
        }
        problems.extend(refused);
        cluster::CheckReply {
            inodes: walk.inodes,
            entries: walk.entries,
            chunks: walk.chunks,
            orphans: walk.orphans,
            problems,
            repaired,
            unknown_chunks: census.unknown_kept,
            unknown_going: census.unknown_going,
            stale_replicas: census.stale,
            corrupt_replicas: census.corrupt,
            extra_replicas: census.extra,
        }
    }
}

pub(super) fn check(admin: &Admin) -> Result<Found, Status> {
    let damaged = admin.group.state().verify().map_err(|error| Status::internal(error.to_string()))?;
    let mut last: Option<HashSet<String>> = None;
    let mut walk = Walk::default();
    for _ in 0..WALKS_MAX {
        let before = admin.group.state().applied();
        walk = Walk::default();
        walk.state(admin)?;
        if let Some(last) = &last {
            walk.problems.retain(|problem| last.contains(&problem.text));
        }
        if walk.problems.is_empty() || admin.group.state().applied() == before {
            break;
        }
        last = Some(walk.problems.iter().map(|problem| problem.text.clone()).collect());
    }
    let damaged = damaged.damaged.iter().map(|damage| Problem::new(format!("a record is damaged: {damage}")));
    let mut problems: Vec<Problem> = damaged.collect();
    problems.append(&mut walk.problems);
    let census = replicas(admin, &mut problems)?;
    name_files(admin.group.state(), &mut problems).map_err(unreadable)?;
    Ok(Found { walk, problems, census })
}

/// What is known of an inode while its namespace is walked.
struct Seen {
    file_type: FileType,
    nlink: u32,
    size: u64,
    parent: Ino,
    blocks_4k: u64,
    chunks: u32,
    names: u32,
    subdirs: u32,
    names_bytes: u64,
    chunk_blocks_4k: u64,
    chunk_refs: u32,
    orphan: bool,
}

#[derive(Default)]
struct Walk {
    inodes: u64,
    entries: u64,
    chunks: u64,
    orphans: u64,
    problems: Vec<Problem>,
}

impl Walk {
    fn tell(&mut self, text: String) -> &mut Problem {
        self.problems.push(Problem::new(text));
        self.problems.last_mut().expect("just pushed")
    }

    fn state(&mut self, admin: &Admin) -> Result<(), Status> {
        let namespaces = admin.group.state().namespaces().map_err(unreadable)?;
        let mut referred = HashSet::new();
        for namespace in &namespaces {
            self.namespace(admin, namespace, &mut referred)?;
        }
        let alive: HashSet<NamespaceId> = namespaces.iter().map(|namespace| namespace.id).collect();
        let mut after = None;
        loop {
            let batch = admin.group.state().chunks_from(after, BATCH).map_err(unreadable)?;
            for (chunk, record) in &batch {
                self.chunks += 1;
                // Those of a deleted namespace are on their way out.
                if !record.deleted && alive.contains(&record.namespace) && !referred.contains(chunk) {
                    let problem = self.tell(format!(
                        "chunk {chunk} says it is chunk {} of inode {} of {}, which does not refer to it",
                        record.index.0, record.ino, record.namespace
                    ));
                    problem.by(record.namespace, Repair::DropChunk { chunk: *chunk });
                }
            }
            match batch.last() {
                Some((last, _)) if batch.len() == BATCH => after = Some(*last),
                _ => return Ok(()),
            }
        }
    }

    fn slices(&mut self, admin: &Admin, namespace: &NamespaceRecord) -> Result<(), Status> {
        let state = admin.group.state();
        let mut sum = Usage::default();
        for (_, left) in state.slices(namespace.id).map_err(unreadable)? {
            sum.bytes = sum.bytes.saturating_add(left.bytes);
            sum.inodes = sum.inodes.saturating_add(left.inodes);
        }
        let all = state.sliced(namespace.id).map_err(unreadable)?;
        if all != sum {
            let problem = self.tell(format!(
                "namespace {}: slices of its quota say {sum:?} left, their sum says {all:?}",
                namespace.name
            ));
            problem.by(namespace.id, Repair::Sliced { from: pair(all), to: pair(sum) });
        }
        Ok(())
    }

    fn namespace(
        &mut self,
        admin: &Admin,
        namespace: &NamespaceRecord,
        referred: &mut HashSet<ChunkId>,
    ) -> Result<(), Status> {
        let name = &namespace.name;
        let mut inodes = read_inodes(admin, namespace.id)?;
        self.inodes += inodes.len() as u64;
        self.orphans(admin, namespace, &mut inodes)?;
        self.entries(admin, namespace, &mut inodes)?;
        self.references(admin, namespace, &mut inodes, referred)?;
        let mut usage = Usage { bytes: 0, inodes: inodes.len() as u64 };
        let mut numbers: Vec<Ino> = inodes.keys().copied().collect();
        numbers.sort_unstable();
        for ino in numbers {
            let inode = &inodes[&ino];
            if inode.file_type == FileType::File {
                usage.bytes = usage.bytes.saturating_add(inode.size);
            }
            self.problems.extend(inode_problems(namespace.id, name, ino, inode));
        }
        if usage != namespace.usage {
            let problem = self.tell(format!(
                "namespace {name}: its usage says {} bytes and {} inodes, it has {} and {}",
                namespace.usage.bytes, namespace.usage.inodes, usage.bytes, usage.inodes
            ));
            problem.by(namespace.id, Repair::Usage { from: pair(namespace.usage), to: pair(usage) });
        }
        self.slices(admin, namespace)?;
        if inodes.get(&ROOT_INO).is_none_or(|root| root.file_type != FileType::Directory) {
            self.tell(format!("namespace {name}: it has no root directory"));
        }
        self.unreachable(name, &inodes);
        Ok(())
    }

    fn orphans(
        &mut self,
        admin: &Admin,
        namespace: &NamespaceRecord,
        inodes: &mut HashMap<Ino, Seen>,
    ) -> Result<(), Status> {
        for (ino, orphan) in admin.group.state().orphans(namespace.id).map_err(unreadable)? {
            self.orphans += 1;
            match inodes.get_mut(&ino) {
                Some(inode) => inode.orphan = true,
                None => {
                    let problem = self.tell(format!(
                        "namespace {}: inode {ino} is held open but does not exist",
                        namespace.name
                    ));
                    problem.by(namespace.id, Repair::DropOrphan { ino });
                }
            }
            for holder in orphan.holders {
                if admin.group.state().session(holder).map_err(unreadable)?.is_none() {
                    let problem = self.tell(format!(
                        "namespace {}: inode {ino} is held open by session {holder}, which has ended",
                        namespace.name
                    ));
                    problem.by(namespace.id, Repair::Release { ino, session: holder });
                }
            }
        }
        Ok(())
    }

    fn entries(
        &mut self,
        admin: &Admin,
        namespace: &NamespaceRecord,
        inodes: &mut HashMap<Ino, Seen>,
    ) -> Result<(), Status> {
        let mut after: Option<(Ino, Name)> = None;
        loop {
            let from = after.as_ref().map(|(parent, name)| (*parent, name));
            let batch = admin.group.state().entries_from(namespace.id, from, BATCH).map_err(unreadable)?;
            for (parent, name, entry) in &batch {
                self.entries += 1;
                let Some((problem, leads_nowhere)) = take_entry(*parent, name, entry, inodes) else {
                    continue;
                };
                let text =
                    format!("namespace {}: entry {name:?} of directory {parent} {problem}", namespace.name);
                let problem = self.tell(text);
                if leads_nowhere {
                    let repair = Repair::DropEntry { parent: *parent, name: name.clone(), ino: entry.ino };
                    problem.by(namespace.id, repair);
                }
            }
            if batch.len() < BATCH {
                return Ok(());
            }
            after = batch.into_iter().next_back().map(|(parent, name, _)| (parent, name));
        }
    }

    fn references(
        &mut self,
        admin: &Admin,
        namespace: &NamespaceRecord,
        inodes: &mut HashMap<Ino, Seen>,
        referred: &mut HashSet<ChunkId>,
    ) -> Result<(), Status> {
        let mut after = None;
        loop {
            let batch =
                admin.group.state().chunk_refs_from(namespace.id, after, BATCH).map_err(unreadable)?;
            for (ino, index, reference) in &batch {
                let chunk = reference.chunk;
                let of = format!("namespace {}: chunk {} of inode {ino}", namespace.name, index.0);
                match inodes.get_mut(ino) {
                    Some(inode) if inode.file_type == FileType::File => {
                        inode.chunk_blocks_4k += u64::from(reference.blocks_4k);
                        inode.chunk_refs += 1;
                    }
                    Some(_) => {
                        self.tell(format!("{of} belongs to an inode that is no file"));
                    }
                    None => {
                        self.tell(format!("{of} belongs to an inode that does not exist"));
                    }
                }
                if !referred.insert(chunk) {
                    self.tell(format!("{of}: {chunk} is in another place of a file too"));
                }
                let claim = Repair::ClaimChunk { ino: *ino, index: *index, chunk };
                match admin.group.state().chunk(chunk).map_err(unreadable)? {
                    None => {
                        let problem = self.tell(format!("{of}: {chunk} has no record"));
                        problem.at(namespace.id, *ino).by(namespace.id, claim);
                    }
                    Some(ChunkRecord { deleted: true, .. }) => {
                        let problem = self.tell(format!("{of}: {chunk} is marked to be deleted"));
                        problem.at(namespace.id, *ino).by(namespace.id, claim);
                    }
                    Some(record)
                        if (record.namespace, record.ino, record.index) != (namespace.id, *ino, *index) =>
                    {
                        let problem = self.tell(format!(
                            "{of}: {chunk} says it is chunk {} of inode {} of {}",
                            record.index.0, record.ino, record.namespace
                        ));
                        problem.at(namespace.id, *ino).by(namespace.id, claim);
                    }
                    Some(_) => {}
                }
            }
            match batch.last() {
                Some((ino, index, _)) if batch.len() == BATCH => after = Some((*ino, *index)),
                _ => return Ok(()),
            }
        }
    }

    /// Directories whose parents do not lead to the root.
    fn unreachable(&mut self, name: &str, inodes: &HashMap<Ino, Seen>) {
        let mut reached = HashSet::from([ROOT_INO]);
        for (&start, _) in inodes.iter().filter(|(_, inode)| inode.file_type == FileType::Directory) {
            let mut path = Vec::new();
            let mut on_path = HashSet::new();
            let mut at = start;
            while !reached.contains(&at) && on_path.insert(at) {
                path.push(at);
                match inodes.get(&at) {
                    Some(inode) if !inode.orphan => at = inode.parent,
                    // Named elsewhere: an orphan, or a parent that does not exist.
                    _ => break,
                }
            }
            let closed = !reached.contains(&at) && inodes.get(&at).is_some_and(|inode| !inode.orphan);
            if closed {
                self.tell(format!("namespace {name}: directory {start} is not below the root"));
            }
            // Each is told of once.
            reached.extend(path);
        }
    }
}

/// Whether live servers have what the state says. Looked at now: replicas change all the time.
fn replicas(admin: &Admin, problems: &mut Vec<Problem>) -> Result<Census, Status> {
    let chunks = &admin.chunks;
    if !chunks.is_settled() {
        problems.push(Problem::new(
            "replicas were not checked: not every ChunkServer has reported since this MetaServer became the \
             leader; check again in half a minute"
                .to_owned(),
        ));
        return Ok(Census::default());
    }
    let tell = |chunk: ChunkId, record: &ChunkRecord, what: &str| {
        let mut problem = Problem::new(format!(
            "chunk {chunk} (chunk {} of inode {} of {}) {what}",
            record.index.0, record.ino, record.namespace
        ));
        problem.at(record.namespace, record.ino);
        problem
    };
    chunks
        .each_chunk(|chunk, record, health| match health {
            Health::Lost | Health::Under if chunks.is_unwritten(record) => {}
            Health::Lost if chunks.is_gone(chunk) => {
                let mut problem =
                    tell(chunk, record, "is lost: all ChunkServers are there, and none has anything of it");
                let hole = Repair::DropReference { ino: record.ino, index: record.index, chunk };
                problem.giving_up(record.namespace, hole);
                problems.push(problem);
            }
            Health::Lost => {
                problems.push(tell(chunk, record, "has no current replica on any live ChunkServer"));
            }
            Health::Under => {
                let what = format!("has fewer than {} current replicas", record.goal);
                problems.push(tell(chunk, record, &what));
            }
            _ => {}
        })
        .map_err(unreadable)?;
    let census = chunks.census().map_err(unreadable)?;
    if census.unknown_kept > 0 {
        problems.push(Problem::new(format!(
            "{} chunks on ChunkServers are unknown to the state: they were written after the backup that it was restored \
             from, or belong elsewhere. They are kept; gofsctl fsck --discard-unknown gives up the former",
            census.unknown_kept
        )));
    }
    Ok(census)
}

fn read_inodes(admin: &Admin, namespace: NamespaceId) -> Result<HashMap<Ino, Seen>, Status> {
    let mut inodes = HashMap::new();
    let mut after = None;
    loop {
        let batch = admin.group.state().inodes_from(namespace, after, BATCH).map_err(unreadable)?;
        let full = batch.len() == BATCH;
        after = batch.last().map(|(ino, _)| *ino);
        inodes.extend(batch.into_iter().map(|(ino, inode)| {
            let seen = Seen {
                file_type: inode.file_type,
                nlink: inode.nlink,
                size: inode.size,
                parent: inode.parent,
                blocks_4k: inode.blocks_4k,
                chunks: inode.chunks,
                names: 0,
                subdirs: 0,
                names_bytes: 0,
                chunk_blocks_4k: 0,
                chunk_refs: 0,
                orphan: false,
            };
            (ino, seen)
        }));
        if !full {
            return Ok(inodes);
        }
    }
}

/// What is wrong with an entry, and whether it leads nowhere.
fn take_entry(
    parent: Ino,
    name: &Name,
    entry: &DirEntry,
    inodes: &mut HashMap<Ino, Seen>,
) -> Option<(&'static str, bool)> {
    let is_dir = entry.file_type == FileType::Directory;
    let above = match inodes.get_mut(&parent) {
        Some(above) if above.file_type == FileType::Directory => {
            above.subdirs += u32::from(is_dir);
            above.names_bytes += name.as_bytes().len() as u64;
            None
        }
        Some(_) => Some(("is in something that is no directory", true)),
        None => Some(("is in a directory that does not exist", true)),
    };
    let below = match inodes.get_mut(&entry.ino) {
        None => Some(("names an inode that does not exist", true)),
        Some(inode) => {
            inode.names += 1;
            let problem = if inode.file_type != entry.file_type {
                Some("gives its inode another type than the inode does")
            } else if is_dir && inode.parent != parent {
                Some("names a directory that says it is in another one")
            } else if inode.orphan {
                Some("names an inode that is marked as unlinked")
            } else {
                None
            };
            problem.map(|problem| (problem, false))
        }
    };
    above.or(below)
}

fn inode_problems(ns: NamespaceId, namespace: &str, ino: Ino, inode: &Seen) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mut tell = |problem: String, repair: Option<Repair>| {
        let mut told = Problem::new(format!("namespace {namespace}: inode {ino} {problem}"));
        told.at(ns, ino).repair = repair.map(|repair| (ns, repair));
        problems.push(told);
    };
    let is_dir = inode.file_type == FileType::Directory;
    if inode.orphan {
        return problems;
    }
    let recount = |count: Count, from: u64, to: u64| Some(Repair::Count { ino, count, from, to });
    if inode.names == 0 && ino != ROOT_INO {
        tell("has no name and nobody has it open".to_owned(), Some(Repair::Adopt { ino }));
    } else if is_dir && inode.names > 1 {
        tell(format!("is a directory with {} names", inode.names), None);
    }
    let links = if is_dir { inode.subdirs + 2 } else { inode.names };
    if inode.nlink != links && (inode.names > 0 || ino == ROOT_INO) {
        let repair = recount(Count::Links, inode.nlink.into(), links.into());
        tell(format!("says it has {} links, it has {links}", inode.nlink), repair);
    }
    if is_dir && inode.size != inode.names_bytes {
        let repair = recount(Count::NamesBytes, inode.size, inode.names_bytes);
        tell(format!("says its names take {} bytes, they take {}", inode.size, inode.names_bytes), repair);
    }
    if inode.file_type == FileType::File && inode.blocks_4k != inode.chunk_blocks_4k {
        let repair = recount(Count::Blocks4k, inode.blocks_4k, inode.chunk_blocks_4k);
        let text =
            format!("says it has {} blocks in chunks, its chunks {}", inode.blocks_4k, inode.chunk_blocks_4k);
        tell(text, repair);
    }
    if inode.file_type == FileType::File && inode.chunks != inode.chunk_refs {
        let repair = recount(Count::Chunks, inode.chunks.into(), inode.chunk_refs.into());
        tell(format!("says it has {} chunks, it has {}", inode.chunks, inode.chunk_refs), repair);
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(file_type: FileType, parent: u64) -> Seen {
        let is_dir = file_type == FileType::Directory;
        Seen {
            file_type,
            nlink: if is_dir { 2 } else { 1 },
            size: 0,
            parent: Ino(parent),
            blocks_4k: 0,
            chunks: 0,
            names: 0,
            subdirs: 0,
            names_bytes: 0,
            chunk_blocks_4k: 0,
            chunk_refs: 0,
            orphan: false,
        }
    }

    fn enter(
        inodes: &mut HashMap<Ino, Seen>,
        parent: u64,
        name: &str,
        ino: u64,
        file_type: FileType,
    ) -> Option<&'static str> {
        let name = Name::new(name.as_bytes()).unwrap();
        take_entry(Ino(parent), &name, &DirEntry { ino: Ino(ino), file_type }, inodes).map(|(text, _)| text)
    }

    fn told(ino: Ino, inode: &Seen) -> Vec<String> {
        inode_problems(NamespaceId(1), "x", ino, inode).into_iter().map(Problem::into_text).collect()
    }

    #[test]
    fn a_sound_tree_has_no_problem_and_each_flaw_is_told() {
        let mut inodes = HashMap::from([
            (ROOT_INO, Seen { nlink: 3, size: 4, ..seen(FileType::Directory, 1) }),
            (Ino(2), Seen { ..seen(FileType::Directory, 1) }),
            (Ino(3), seen(FileType::File, 0)),
            (Ino(4), seen(FileType::File, 0)),
        ]);
        assert_eq!(enter(&mut inodes, 1, "dir", 2, FileType::Directory), None);
        assert_eq!(enter(&mut inodes, 1, "f", 3, FileType::File), None);
        for ino in [1, 2, 3] {
            assert_eq!(told(Ino(ino), &inodes[&Ino(ino)]), Vec::<String>::new());
        }
        assert!(told(Ino(4), &inodes[&Ino(4)])[0].contains("has no name"));
        assert!(enter(&mut inodes, 2, "g", 9, FileType::File).unwrap().contains("does not exist"));
        assert!(enter(&mut inodes, 3, "g", 4, FileType::File).unwrap().contains("no directory"));
        assert!(enter(&mut inodes, 2, "g", 3, FileType::Directory).unwrap().contains("another type"));
        assert!(told(Ino(3), &inodes[&Ino(3)])[0].contains("says it has 1 links, it has 2"));
    }

    #[test]
    fn a_cycle_of_directories_is_not_below_the_root() {
        let inodes = HashMap::from([
            (ROOT_INO, seen(FileType::Directory, 1)),
            (Ino(2), seen(FileType::Directory, 1)),
            (Ino(3), seen(FileType::Directory, 4)),
            (Ino(4), seen(FileType::Directory, 3)),
        ]);
        let mut walk = Walk::default();
        walk.unreachable("x", &inodes);
        assert_eq!(walk.problems.len(), 1);
        let sound = HashMap::from([
            (ROOT_INO, seen(FileType::Directory, 1)),
            (Ino(2), seen(FileType::Directory, 1)),
            (Ino(3), seen(FileType::Directory, 2)),
        ]);
        let mut walk = Walk::default();
        walk.unreachable("x", &sound);
        assert!(walk.problems.is_empty());
    }
}
