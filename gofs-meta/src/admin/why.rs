//! `Why`: what a path, a chunk or a ChunkServer is and where everything of it lies.

use gofs_proto::cluster::{self, why_request::What};
use gofs_tree::{
    ChunkId, ChunkIndex, ChunkServerId, FileType, Ino, LeaseMode, Name, NamespaceId, ROOT_INO, Store,
};
use tonic::Status;

use super::{Admin, chunk_servers, namespaces::find, unreadable};
use crate::chunks::Health;

/// Chunks of a file that are described; the reply must fit in one message.
const CHUNKS_MAX: usize = 4096;

pub(super) fn why(admin: &Admin, request: cluster::WhyRequest) -> Result<cluster::WhyReply, Status> {
    match request.what {
        Some(What::Path(path)) => why_path(admin, &path),
        Some(What::Chunk(chunk)) => why_chunk(admin, ChunkId(chunk)),
        Some(What::Server(server)) => why_server(admin, ChunkServerId(server)),
        None => {
            Err(Status::invalid_argument("nothing was asked about: name a path, a chunk or a ChunkServer"))
        }
    }
}

fn why_path(admin: &Admin, path: &cluster::WhyPath) -> Result<cluster::WhyReply, Status> {
    let namespace = find(admin, &path.namespace)?.id;
    let ino = resolve(admin, namespace, &path.path)?;
    let mut reply = describe(admin, namespace, ino)?;
    let refs = admin.group.state().tree(namespace).chunks_from(ino, ChunkIndex(0)).map_err(unreadable)?;
    for (_, chunk) in refs.iter().take(CHUNKS_MAX) {
        reply.chunks.push(chunk_on_wire(admin, chunk.chunk)?);
    }
    Ok(reply)
}

/// Walks the path; says which part of it is not there.
fn resolve(admin: &Admin, namespace: NamespaceId, path: &[u8]) -> Result<Ino, Status> {
    let tree = admin.group.state().tree(namespace);
    let mut at = ROOT_INO;
    let mut walked = String::new();
    for part in path.split(|&byte| byte == b'/').filter(|part| !part.is_empty() && *part != b".") {
        let name = Name::new(part).map_err(|error| {
            Status::invalid_argument(format!("{:?} in the path: {error}", String::from_utf8_lossy(part)))
        })?;
        let inode = tree.inode(at).map_err(unreadable)?;
        let above = if walked.is_empty() { "/" } else { walked.as_str() };
        match inode {
            None => return Err(Status::not_found(format!("{above}: inode {at} is gone"))),
            Some(inode) if inode.file_type == FileType::Symlink => {
                return Err(Status::invalid_argument(format!(
                    "{above} is a symbolic link to {:?}: ask for that path",
                    String::from_utf8_lossy(&inode.inline)
                )));
            }
            Some(inode) if !inode.is_dir() => {
                return Err(Status::not_found(format!("{above} is not a directory")));
            }
            Some(_) => {}
        }
        let entry = tree.entry(at, &name).map_err(unreadable)?;
        walked = format!("{walked}/{name}");
        at = entry.ok_or_else(|| Status::not_found(format!("{walked}: no such file or directory")))?.ino;
    }
    Ok(at)
}

fn describe(admin: &Admin, namespace: NamespaceId, ino: Ino) -> Result<cluster::WhyReply, Status> {
    let state = admin.group.state();
    let inode = state.tree(namespace).inode(ino).map_err(unreadable)?;
    let inode = inode.ok_or_else(|| Status::not_found(format!("inode {ino} is not there")))?;
    let mut leases = Vec::new();
    for lease in admin.sessions.leases(namespace, ino) {
        let session = state.session(lease.session).map_err(unreadable)?;
        let (host, mount_point) = session.map(|s| (s.host, s.mount_point)).unwrap_or_default();
        let mode = match lease.mode {
            Some(LeaseMode::Read) => "read",
            Some(LeaseMode::Write) => "write",
            None => "none",
        };
        leases.push(cluster::WhyLease {
            session: lease.session.0,
            host,
            mount_point,
            mode: mode.to_owned(),
            recalling: lease.recalling,
            open: lease.open,
        });
    }
    Ok(cluster::WhyReply {
        ino: ino.0,
        file_type: type_name(inode.file_type).to_owned(),
        mode: inode.mode.bits(),
        uid: inode.uid,
        gid: inode.gid,
        nlink: inode.nlink,
        size: inode.size,
        inline_bytes: u32::try_from(inode.inline.len()).unwrap_or(u32::MAX),
        leases,
        ..cluster::WhyReply::default()
    })
}

fn type_name(file_type: FileType) -> &'static str {
    match file_type {
        FileType::File => "file",
        FileType::Directory => "directory",
        FileType::Symlink => "symbolic link",
        FileType::Fifo => "fifo",
        FileType::Socket => "socket",
        FileType::CharDevice => "character device",
        FileType::BlockDevice => "block device",
    }
}

fn why_chunk(admin: &Admin, chunk: ChunkId) -> Result<cluster::WhyReply, Status> {
    let described = chunk_on_wire(admin, chunk)?;
    let record = admin.group.state().chunk(chunk).map_err(unreadable)?;
    let mut reply = match record {
        Some(record) if !record.deleted => describe(admin, record.namespace, record.ino)
            .unwrap_or_else(|_| cluster::WhyReply { ino: record.ino.0, ..cluster::WhyReply::default() }),
        _ if described.replicas.is_empty() => {
            return Err(Status::not_found(format!(
                "no chunk {chunk}: neither a file nor a ChunkServer has it"
            )));
        }
        _ => cluster::WhyReply::default(),
    };
    reply.chunks.push(described);
    Ok(reply)
}

fn chunk_on_wire(admin: &Admin, chunk: ChunkId) -> Result<cluster::WhyChunk, Status> {
    let replicas = admin.chunks.why_chunk(chunk).into_iter().map(|replica| cluster::WhyReplica {
        server: replica.server.0,
        address: replica.address,
        version: replica.version.0,
        state: replica.state,
    });
    let mut described = cluster::WhyChunk {
        chunk: chunk.0,
        replicas: replicas.collect(),
        state: Health::Orphan.name().to_owned(),
        ..cluster::WhyChunk::default()
    };
    let state = admin.group.state();
    let Some(record) = state.chunk(chunk).map_err(unreadable)? else { return Ok(described) };
    let reference = state.tree(record.namespace).chunk(record.ino, record.index).map_err(unreadable)?;
    let namespace = state.namespace(record.namespace).map_err(unreadable)?;
    let health = admin.chunks.health(chunk, &record);
    let unwritten = health == Health::Lost && admin.chunks.is_unwritten(&record);
    described.version = record.version.0;
    described.index = record.index.0;
    described.ino = record.ino.0;
    described.namespace = namespace.map(|namespace| namespace.name).unwrap_or_default();
    described.goal = record.goal;
    described.state = if unwritten { "never written" } else { health.name() }.to_owned();
    described.blocks_4k = reference.map_or(0, |reference| reference.blocks_4k);
    Ok(described)
}

fn why_server(admin: &Admin, id: ChunkServerId) -> Result<cluster::WhyReply, Status> {
    let server = admin.chunks.servers().into_iter().find(|server| server.id == id);
    let server = server.ok_or_else(|| {
        Status::not_found(format!("no ChunkServer {id} ever registered; gofsctl servers shows which did"))
    })?;
    Ok(cluster::WhyReply {
        server: Some(chunk_servers::to_wire(admin, server).map_err(unreadable)?),
        ..cluster::WhyReply::default()
    })
}
