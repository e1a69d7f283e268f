//! A whole server on loopback with a MetaServer and a client of its own.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use gofs_chunk::{Config, Server};
use gofs_proto::chunk::{Hello, Hop, Read, Write, WriteItem, WriteReply, Writer};
use gofs_proto::frame::Frame;
use gofs_proto::session::Failure;
use gofs_proto::session::failure::Code;
use gofs_proto::{CallError, Link, LinkHandler};

use super::fake_meta::{CLUSTER, FakeMeta};

pub struct NoRequests;
impl LinkHandler for NoRequests {
    fn on_request(&self, _: &Arc<Link>, _: Frame) {}
    fn on_close(&self, _: &Arc<Link>) {}
}

pub struct Node {
    pub server: Server,
    pub meta: FakeMeta,
    pub link: Arc<Link>,
    pub id: u64,
}

pub async fn connect(server: &Server) -> Arc<Link> {
    connect_as(server, Bytes::new()).await
}

pub async fn connect_as(server: &Server, writer: Bytes) -> Arc<Link> {
    let link = Link::connect(server.address(), Arc::new(NoRequests), Duration::from_secs(5)).await.unwrap();
    let hello = Hello { version: 1, oldest_version: 1, cluster: CLUSTER.to_vec().into(), writer };
    let (welcome, _) = link.call(&hello, Vec::new()).await.unwrap();
    assert_eq!(welcome.server, server.id().0);
    link
}

pub fn config(dir: &Path, meta: &FakeMeta) -> Config {
    let mut config =
        Config::new("127.0.0.1:0".parse().unwrap(), vec![dir.to_owned()], vec![meta.address.to_string()]);
    config.segment_bytes = 1 << 20;
    config.reserve_bytes = Some(16 << 20);
    config
}

pub async fn node(dir: &Path) -> Node {
    node_of(vec![dir.to_owned()]).await
}

/// With several data directories.
pub async fn node_of(dirs: Vec<PathBuf>) -> Node {
    let meta = FakeMeta::start().await;
    let config = Config { data: dirs.clone(), ..config(&dirs[0], &meta) };
    let server = Server::start(config).await.unwrap();
    let register = meta.registered().await;
    assert_eq!((register.server, register.address.clone()), (server.id().0, server.address().to_string()));
    let link = connect(&server).await;
    Node { id: server.id().0, server, meta, link }
}

impl Node {
    pub fn hop(&self) -> Hop {
        Hop { server: self.id, address: self.server.address().to_string() }
    }

    pub async fn read(&self, chunk: u64, version: u64, offset: u32, len: u32) -> Result<Bytes, CallError> {
        let (reply, bytes) =
            self.link.call(&Read { chunk, version, offset, len, copy: false }, Vec::new()).await?;
        assert_eq!(crc32c::crc32c(&bytes), reply.crc32c);
        assert_eq!(bytes.len(), len as usize);
        Ok(bytes)
    }
}

pub fn write(chunk: u64, version: u64, offset: u32, bytes: &[u8], chain: Vec<Hop>) -> Write {
    let item = WriteItem {
        chunk,
        version,
        offset,
        len: bytes.len() as u32,
        crc32c: crc32c::crc32c(bytes),
        create: true,
    };
    Write { writer: Some(Writer { namespace: 1, session: 9 }), items: vec![item], chain, sync: false }
}

pub async fn put(link: &Link, write: &Write, bytes: &[u8]) -> Result<WriteReply, CallError> {
    Ok(link.call(write, vec![Bytes::copy_from_slice(bytes)]).await?.0)
}

pub fn code<T: std::fmt::Debug>(result: Result<T, CallError>) -> Code {
    match result {
        Err(CallError::Refused(failure)) => failure.code(),
        other => panic!("not refused: {other:?}"),
    }
}

pub fn refusal<T: std::fmt::Debug>(result: Result<T, CallError>) -> Failure {
    match result {
        Err(CallError::Refused(failure)) => failure,
        other => panic!("not refused: {other:?}"),
    }
}
