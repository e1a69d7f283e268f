//! A MetaServer in memory that does as it is told: one session, a real tree, scripted misbehaviour.
//!
//! [`Fake`] is what a test holds. [`server`] is what the servers would know and answer, [`script`] what goes wrong
//! instead, [`kernel`] the other side of the client.

mod kernel;
mod script;
mod server;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use gofs_client::{Client, ClientConfig};
use gofs_proto::Link;
use gofs_proto::convert::{self, Grant};
use gofs_proto::kind::Request;
use gofs_proto::session as wire;
use gofs_tree::{
    Attr, AttrChange, ChunkId, ChunkIndex, EditOp, Ino, LeaseMode, Name, NewNode, ROOT_INO, Store, Timestamp,
    XattrName,
};
use parking_lot::Mutex;
use tokio::sync::Notify;

pub use kernel::Kernel;
pub use script::Act;

use script::{Handler, Script};
use server::Server;

/// See the module.
pub struct Fake {
    pub address: SocketAddr,
    server: Arc<Mutex<Server>>,
    changed: Arc<Notify>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.stop();
    }
}

pub fn name(text: &str) -> Name {
    Name::new(text.as_bytes()).unwrap()
}

impl Fake {
    pub async fn start() -> Fake {
        let server = Arc::new(Mutex::new(Server::new()));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let changed = Arc::new(Notify::new());
        let (shared, notify) = (server.clone(), changed.clone());
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                gofs_proto::door::which(&stream).await.unwrap();
                let handler = Handler { server: shared.clone(), changed: notify.clone() };
                Link::accept(stream, Arc::new(handler)).unwrap();
            }
        });
        Fake { address, server, changed, task }
    }

    /// Nobody listens any more, and the connection is gone.
    pub fn stop(&self) {
        self.task.abort();
        if let Some(link) = self.server.lock().link.take() {
            link.close();
        }
    }

    pub fn config(&self) -> ClientConfig {
        ClientConfig {
            metas: vec![self.address.to_string()],
            namespace: "test".to_owned(),
            mount_timeout: Duration::from_secs(10),
            dirty_age: Duration::from_secs(3600),
            ..ClientConfig::default()
        }
    }

    pub async fn mount(&self) -> (Arc<Client>, Arc<Kernel>) {
        let kernel = Arc::new(Kernel::default());
        let client = Client::mount(self.config(), kernel.clone()).await.unwrap();
        kernel.mounted(&client);
        (client, kernel)
    }

    pub fn next<R: Request>(&self, act: Act) {
        self.server.lock().script.next.push((R::KIND, act));
    }

    pub fn always<R: Request>(&self, act: Act) {
        self.server.lock().script.always.insert(R::KIND, act);
    }

    pub fn well_behaved(&self) {
        self.server.lock().script = Script::default();
    }

    pub fn set_validity(&self, validity: Duration) {
        self.server.lock().validity_ms = validity.as_millis() as u32;
    }

    /// Serves Walks.
    pub fn walks(&self) {
        self.server.lock().walks = true;
    }

    /// As the only session of its namespace the client gets Write leases.
    pub fn alone(&self) {
        self.server.lock().alone = true;
    }

    /// Refuses that edit of a batch.
    pub fn refuse(&self, edit: &str) {
        self.server.lock().refused = Some(edit.to_owned());
    }

    /// Sends mounts on.
    pub fn not_leader(&self, leader: &str) {
        self.server.lock().leader = Some(leader.to_owned());
    }

    /// Makes a directory behind the client's back and returns its inode.
    pub fn put_dir(&self, parent: Ino, text: &str) -> Ino {
        self.server.lock().put(parent, text, NewNode::Directory)
    }

    /// Makes a file behind the client's back and returns its inode.
    pub fn put_file(&self, text: &str, bytes: &[u8]) -> Ino {
        let ino = self.server.lock().put(ROOT_INO, text, NewNode::File);
        self.put_bytes(ino, bytes);
        ino
    }

    /// Makes a file whose bytes are with ChunkServers behind the client's back and returns its inode.
    pub fn put_chunked(&self, text: &str, size: u64) -> Ino {
        let mut server = self.server.lock();
        let ino = server.put(ROOT_INO, text, NewNode::File);
        server.edit(EditOp::AddChunk { ino, index: ChunkIndex(0), chunk: ChunkId(1) });
        let (mtime, blocks_4k) = (Timestamp::new(2, 0), vec![(ChunkIndex(0), 1)]);
        server.edit(EditOp::Extend { ino, size, mtime, blocks_4k, clear_inline: true });
        ino
    }

    /// Empties a file behind the client's back.
    pub fn cut(&self, ino: Ino) {
        let change = AttrChange { size: Some(0), ..AttrChange::default() };
        self.server.lock().edit(EditOp::SetAttr { ino, change });
    }

    /// Gives a small file another content behind the client's back.
    pub fn put_bytes(&self, ino: Ino, bytes: &[u8]) {
        let (data, size) = (Bytes::copy_from_slice(bytes), bytes.len() as u64);
        let mtime = Timestamp::new(2, 0);
        self.server.lock().edit(EditOp::WriteInline { ino, data, size, mtime });
    }

    /// Removes a file behind the client's back.
    pub fn remove_file(&self, text: &str) {
        let unlink = EditOp::Unlink { parent: ROOT_INO, name: name(text), holders: Vec::new() };
        self.server.lock().edit(unlink);
    }

    /// What the servers hold of a small file.
    pub fn bytes_of(&self, ino: Ino) -> Vec<u8> {
        self.server.lock().tree.inode(ino).unwrap().unwrap().inline.to_vec()
    }

    /// An inode's attributes at the server.
    pub fn attr_of(&self, ino: Ino) -> Attr {
        self.server.lock().tree.inode(ino).unwrap().unwrap().attr(ino)
    }

    /// What is asked of the quota from now on brings this, bytes and inodes.
    pub fn meter(&self, bytes: u64, inodes: u64) {
        self.server.lock().slice = Some((bytes, inodes));
    }

    /// As `meter`, where nothing but bytes is metered.
    pub fn meter_bytes(&self, bytes: u64) {
        self.meter(bytes, 0);
        self.server.lock().meters_inodes = false;
    }

    /// Wishes for slices of the quota, without those for nothing.
    pub fn delegated(&self) -> Vec<wire::Delegate> {
        self.server.lock().delegated.clone()
    }

    /// Asks for the slice of the quota, and returns when it was given back.
    pub async fn recall_slice(&self) {
        let link = self.server.lock().link.clone().expect("connected");
        link.call(&wire::RecallSlice {}, Vec::new()).await.expect("given back");
    }

    /// Says where the MetaServers are, and returns when that was heard.
    pub async fn tell_members(&self, addresses: &[&str]) {
        let link = self.server.lock().link.clone().expect("connected");
        let addresses = addresses.iter().map(|&address| address.to_owned()).collect();
        link.call(&wire::Members { addresses }, Vec::new()).await.expect("heard");
    }

    /// Extended attributes that the servers have of an inode.
    pub fn xattrs_of(&self, ino: Ino) -> Vec<(String, Bytes)> {
        let all = self.server.lock().tree.xattrs(ino).unwrap();
        let shown = |(name, value): (XattrName, Bytes)| {
            (String::from_utf8_lossy(name.as_bytes()).into_owned(), value)
        };
        all.into_iter().map(shown).collect()
    }

    /// Requests so far, by kind, without keep-alives and what goes with them, and without wishes for quota.
    pub fn requests(&self) -> Vec<String> {
        self.server.lock().requests.clone()
    }

    /// Requests of that kind so far.
    pub fn count(&self, kind: &str) -> usize {
        self.server.lock().requests.iter().filter(|request| *request == kind).count()
    }

    pub fn applied(&self) -> Vec<String> {
        self.server.lock().applied.clone()
    }

    pub fn hellos(&self) -> Vec<wire::Hello> {
        self.server.lock().hellos.clone()
    }

    pub fn lease(&self, ino: Ino) -> Option<Grant> {
        self.server.lock().leases.get(&ino).copied()
    }

    pub fn drop_connection(&self) {
        let link = self.server.lock().link.take();
        link.expect("connected").close();
    }

    /// The session ends, as if it had not been heard of for long.
    pub fn fence(&self) {
        self.server.lock().fence();
    }

    /// Refuses the lease on that inode when it is claimed again.
    pub fn refuse_lease(&self, ino: Ino) {
        let mut server = self.server.lock();
        server.leases.remove(&ino);
        server.refused_leases.push(ino);
    }

    /// Asks for a lease, or names, and returns the acknowledgement.
    pub async fn recall(&self, ino: Ino, epoch: u64, keep: Option<LeaseMode>, names: &[&str]) -> bool {
        let (link, request) = {
            let server = self.server.lock();
            let names = names.iter().map(|name| Bytes::copy_from_slice(name.as_bytes())).collect();
            let keep = convert::lease_mode_to_wire(keep);
            (server.link.clone().expect("connected"), wire::Recall { ino: ino.0, epoch, keep, names })
        };
        let (reply, _) = link.call(&request, Vec::new()).await.expect("acknowledged");
        let mut server = self.server.lock();
        match (keep, names) {
            (None, []) => drop(server.leases.remove(&ino)),
            (Some(mode), []) => {
                server.leases.entry(ino).and_modify(|grant| grant.mode = mode);
            }
            _ => {}
        }
        reply.open
    }

    /// As `recall`, of the whole lease as it is held.
    pub async fn recall_all(&self, ino: Ino) -> bool {
        let epoch = self.lease(ino).expect("held").epoch.0;
        self.recall(ino, epoch, None, &[]).await
    }

    /// Acknowledgements of the recalls of `Act::ThenRecall`; `None` = not yet.
    pub fn recalled(&self) -> Vec<Option<bool>> {
        self.server.lock().recalled.clone()
    }

    pub async fn until(&self, done: impl Fn(&Fake) -> bool) {
        let waiting = async {
            while !done(self) {
                let changed = self.changed.notified();
                let _ = tokio::time::timeout(Duration::from_millis(10), changed).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), waiting).await.expect("it must come to that");
    }
}
