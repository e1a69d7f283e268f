//! Taking replies in.

use bytes::Bytes;
use gofs_proto::convert::{ConvertError, Node};
use gofs_proto::session;
use gofs_tree::{Attr, Edit, EditOp, FileType, FsError, Ino, Outcome};
use parking_lot::MutexGuard;

use super::Core;
use crate::cached::Cached;
use crate::clock::{BootTime, wall_time};
use crate::data::{Content, LocalAttr};
use crate::lease::{LeaseTable, Permit, changed_itself, concerned};
use std::sync::Arc;
use std::time::Duration;

/// A reply that makes no sense. Logged here, once.
pub fn garbled(error: &ConvertError) -> FsError {
    tracing::error!(%error, "reply of the MetaServer makes no sense");
    FsError::Io
}

/// Attributes with what is newer here.
pub fn overlaid(mut attr: Attr, local: Option<LocalAttr>) -> Attr {
    if let Some(local) = local {
        attr.size = local.size;
        attr.mtime = local.mtime;
        attr.ctime = attr.ctime.max(local.ctime);
        attr.blocks = local.blocks;
    }
    attr
}

/// How an edit is sent.
#[derive(Clone, Copy, Debug, Default)]
pub struct EditHints {
    /// The inodes that lose their name are open here.
    pub open_here: bool,
    /// The new inode is open here.
    pub keep_open: bool,
}

/// An edit that the servers make, under way.
struct Asking {
    core: Arc<Core>,
    inos: Vec<Ino>,
}

impl Drop for Asking {
    fn drop(&mut self) {
        self.core.table.lock().end_change(&self.inos);
    }
}

impl Core {
    /// Takes an inode in, the contents of a file included. True where it is cached now.
    pub fn take_in(&self, table: &mut LeaseTable, node: &Node) -> bool {
        let held = table.mode(node.attr.ino).is_some();
        let learned = table.learn(node);
        if learned {
            self.load(held, node);
        }
        learned
    }

    pub(super) fn load(&self, held: bool, node: &Node) {
        let ino = node.attr.ino;
        // What is loaded under a lease held all along is at least as new as any reply.
        if node.attr.file_type == FileType::File && !(held && self.data.is_loaded(ino)) {
            // A copy: what is kept of a long reply must not keep all of it.
            let inline = Bytes::copy_from_slice(&node.inline);
            self.data.load(ino, Content::new(&node.attr, inline, node.has_chunks));
        }
    }

    /// As `take_in`, of an inode that an own edit has changed.
    fn take_in_changed(&self, table: &mut LeaseTable, node: &Node) {
        let held = table.mode(node.attr.ino).is_some();
        if table.learn_changed(node) {
            self.load(held, node);
        }
    }

    /// Attributes from a reply that was just taken in, for the kernel.
    pub fn answer(&self, table: &mut LeaseTable, attr: Attr, learned: bool) -> Cached<Attr> {
        let attr = table.pending_attr(attr.ino).cloned().unwrap_or(attr);
        // Of what is being changed, others may have seen the change already.
        let may_keep = learned && !table.is_changing([&attr.ino]);
        let permit = if may_keep { table.permit(attr.ino, BootTime::now()) } else { Permit::default() };
        let local = self.data.overlay(attr.ino);
        Cached {
            value: overlaid(attr, local),
            ttl: permit.ttl,
            entry_ttl: Duration::ZERO,
            guard: permit.guard,
        }
    }

    /// The time that a name may be kept.
    pub fn entry_ttl(&self, ttl: Duration) -> Duration {
        if self.kernel.can_cache_entries() { ttl } else { Duration::ZERO }
    }

    /// Attributes with the name that leads to them.
    pub fn named<T>(&self, attr: Cached<T>, name: Permit) -> Cached<T> {
        Cached {
            value: attr.value,
            ttl: attr.ttl,
            entry_ttl: self.entry_ttl(name.ttl),
            guard: attr.guard.and(name.guard),
        }
    }

    /// Makes one edit, here where that is possible, else at the servers; `then` sees its outcome with every node taken in
    /// and the table locked.
    pub async fn edit<T: Send + 'static>(
        self: &Arc<Self>,
        op: EditOp,
        hints: EditHints,
        then: impl Fn(&Core, &mut LeaseTable, Outcome, &[Node]) -> T + Clone + Send + Sync + 'static,
    ) -> Result<T, FsError> {
        self.edit_at(Edit { time: wall_time(), op }, hints, then).await
    }

    /// As `edit`, with its time chosen.
    pub async fn edit_at<T: Send + 'static>(
        self: &Arc<Self>,
        edit: Edit,
        hints: EditHints,
        then: impl Fn(&Core, &mut LeaseTable, Outcome, &[Node]) -> T + Clone + Send + Sync + 'static,
    ) -> Result<T, FsError> {
        match self.edit_here(&edit, hints, &then) {
            Some(done) => done,
            // On the heap: what is answered from memory must not carry the state of what is not.
            None => Box::pin(self.edit_there(edit, hints, then)).await,
        }
    }

    async fn edit_there<T: Send + 'static>(
        self: &Arc<Self>,
        edit: Edit,
        hints: EditHints,
        then: impl Fn(&Core, &mut LeaseTable, Outcome, &[Node]) -> T + Clone + Send + Sync + 'static,
    ) -> Result<T, FsError> {
        // Before the log is looked at: from then on nothing is done here with what the edit is about.
        let asking = self.asking(concerned(&edit.op));
        if let Some(ino) = changed_itself(&edit.op) {
            // Others may see the change before its answer is here, and nobody here what was before after that.
            self.kernel.forget_attributes(ino);
        }
        self.all_edits_sent().await?;
        let request = session::Edits {
            first_seq: 0,
            answered_seq: 0,
            edits: vec![gofs_proto::convert::edit_to_wire(&edit)],
            open_here: hints.open_here,
            keep_open: hints.keep_open,
        };
        let core = self.clone();
        self.session
            .edit(request, move |reply| {
                // For as long as the edit is under way, also where the caller has given up.
                let _asking = &asking;
                let result = reply.results.first().ok_or(ConvertError::Missing("result of an edit"));
                let result = result.map_err(|e| garbled(&e))?;
                let outcome = result.outcome().map_err(|e| garbled(&e))?;
                let nodes: Result<Vec<Node>, _> = result.nodes.iter().map(Node::try_from).collect();
                let nodes = nodes.map_err(|e| garbled(&e))?;
                let mut table = core.table.lock();
                for node in &nodes {
                    core.take_in_changed(&mut table, node);
                }
                let done = outcome.map(|outcome| then(&core, &mut table, outcome, &nodes));
                core.after_learning(table);
                done
            })
            .await
    }

    fn asking(self: &Arc<Self>, inos: Vec<Ino>) -> Arc<Asking> {
        self.table.lock().begin_change(&inos);
        Arc::new(Asking { core: self.clone(), inos })
    }

    /// Ends taking in: makes room where too much is cached.
    pub fn after_learning(self: &Arc<Self>, table: MutexGuard<'_, LeaseTable>) {
        let over = table.is_over(self.config.cache_bytes);
        drop(table);
        if over {
            self.begin_eviction();
        }
    }

    /// The node of an inode among those of a reply.
    pub fn node_of(nodes: &[Node], ino: Ino) -> Option<&Node> {
        nodes.iter().find(|node| node.attr.ino == ino)
    }
}

/// An answer from the cache.
pub fn cached<T>(value: T, permit: Permit) -> Cached<T> {
    Cached { value, ttl: permit.ttl, entry_ttl: Duration::ZERO, guard: permit.guard }
}
