//! A mount in this process, from the connection to the MetaServers to the last flush.

use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use gofs_client::{Client, ClientConfig, Unmounted, Wait};
use gofs_wakeful::Wakeful;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tracing::{error, info, warn};

use crate::attach::{Attached, Attachment, attach};
use crate::backend::Backend;
use crate::convert::InoMap;
use crate::filesystem::Gofs;
use crate::kernel_cache::KernelNotifier;
use crate::options::MountOptions;
use crate::source::{Source, SourceError};

/// How long a fresh mount may take to answer its first `stat`.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);
/// How long the end of a mount may take: flushing, then saying goodbye.
const UNMOUNT_LIMIT: Duration = Duration::from_secs(30);
/// How long to look at the mount point: one whose daemon died hangs or fails.
const MOUNT_POINT_LIMIT: Duration = Duration::from_secs(10);

/// Boxed: so a mount is compiled once and not in every program that makes one.
type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// What to mount, where and how.
#[derive(Clone, Debug)]
pub struct MountConfig {
    /// `META[,META...]:/NAMESPACE[/SUBDIR]`.
    pub source: String,
    /// A directory.
    pub mount_point: PathBuf,
    /// How.
    pub options: MountOptions,
}

/// Why a mount failed.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// The source makes no sense.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The mount point cannot be one.
    #[error("mount point {}: {error}", mount_point.display())]
    MountPoint {
        /// Which.
        mount_point: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// The cluster did not take the mount.
    #[error(transparent)]
    Client(#[from] gofs_client::MountError),
    /// No `/dev/fuse`.
    #[error("cannot open /dev/fuse: {error}. Is the fuse module loaded (modprobe fuse)?")]
    Device {
        /// Why.
        error: io::Error,
    },
    /// The kernel or fusermount3 refused.
    #[error("cannot mount on {}: {error}", mount_point.display())]
    Mount {
        /// Where.
        mount_point: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// The kernel mounted but did not agree on the protocol.
    #[error("mounted on {} but could not begin to serve: {error}", mount_point.display())]
    Handshake {
        /// Where.
        mount_point: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// Everything is there but the first look at the mount failed.
    #[error("mounted on {} but it does not answer: {error}", mount_point.display())]
    NoAnswer {
        /// Where.
        mount_point: PathBuf,
        /// Why.
        error: io::Error,
    },
}

/// A mount that answers. Dropping it without [`unmount`](Mounted::unmount) leaves it mounted until the process ends.
pub struct Mounted {
    client: Arc<Client>,
    served: Served,
}

/// A backend that the kernel's requests are answered by. Dropping it without [`detach`](Served::detach) leaves it
/// mounted until the process ends.
pub struct Served {
    attachment: Attachment,
    ended: watch::Receiver<bool>,
}

/// Mounts in this process and returns when the mount answers. Must run in a multi-threaded runtime,
/// which serves it until the end.
pub fn mount(config: MountConfig) -> BoxFuture<Result<Mounted, MountError>> {
    Box::pin(begin(config))
}

async fn begin(config: MountConfig) -> Result<Mounted, MountError> {
    let source: Source = config.source.parse()?;
    let mount_point = check_mount_point(&config.mount_point).await?;
    let kernel = Arc::new(KernelNotifier::default());
    let client = Client::mount(client_config(&source, &mount_point, &config.options), kernel.clone()).await?;
    match serve_at(client.clone(), kernel, &config.source, &mount_point, &config.options).await {
        Ok(served) => Ok(Mounted { client, served }),
        Err(error) => {
            client.unmount(UNMOUNT_LIMIT).await;
            Err(error)
        }
    }
}

/// Puts a backend on a mount point and returns when it answers; `source` is what mount(8) shows. `kernel` is what the backend takes
/// the kernel's copies back by. Must run in a multi-threaded runtime, which serves it until the end.
pub async fn serve<B: Backend>(
    backend: Arc<B>,
    kernel: Arc<KernelNotifier>,
    source: &str,
    mount_point: &Path,
    options: &MountOptions,
) -> Result<Served, MountError> {
    let mount_point = check_mount_point(mount_point).await?;
    serve_at(backend, kernel, source, &mount_point, options).await
}

async fn serve_at<B: Backend>(
    backend: Arc<B>,
    kernel: Arc<KernelNotifier>,
    source: &str,
    mount_point: &Path,
    options: &MountOptions,
) -> Result<Served, MountError> {
    let capabilities = Arc::new(Mutex::new(None));
    let wakeful = Wakeful::start(options.cpu_latency);
    let map = InoMap::new(backend.root());
    let gofs = Gofs::new(backend, kernel.clone(), Handle::current(), wakeful, capabilities.clone());
    let regions = gofs.region_reader();
    let (name, point, how) = (source.to_owned(), mount_point.to_owned(), options.clone());
    let Attached { session, mut attachment, device } =
        blocking(move || attach(gofs, &name, &point, &how)).await?;

    let served = kernel.clone();
    kernel.connect(device, map);
    if let Some(capabilities) = capabilities.lock().as_ref() {
        capabilities.log(gofs_client::KernelCache::can_cache_entries(&*kernel));
    }
    let (end, ended) = watch::channel(false);
    let serving = std::thread::Builder::new().name("gofs-session".to_owned()).spawn(move || {
        if let Err(error) = session.run() {
            error!(%error, "serving the kernel ended with an error");
        }
        served.disconnect();
        end.send_replace(true);
    });
    let answer = match serving {
        Ok(_) => first_answer(mount_point).await,
        Err(error) => Err(error),
    };
    match answer {
        Ok(device) => {
            raise_read_ahead(device, options.read_ahead_bytes);
            if options.read_ahead_bytes > 0 {
                regions.start(mount_point);
            }
            info!(%source, mount_point = %mount_point.display(), "mounted");
            Ok(Served { attachment, ended })
        }
        Err(error) => {
            blocking(move || attachment.detach()).await;
            Err(MountError::NoAnswer { mount_point: mount_point.to_owned(), error })
        }
    }
}

impl Served {
    /// Returns when the mount was taken off from outside (umount(8)).
    pub async fn wait(&self) {
        let mut ended = self.ended.clone();
        // The sender goes away only with the session.
        ended.wait_for(|ended| *ended).await.ok();
    }

    /// Takes the mount off if it is still there.
    pub async fn detach(self) {
        let Served { mut attachment, ended } = self;
        if !*ended.borrow() {
            blocking(move || attachment.detach()).await;
        }
    }
}

impl Mounted {
    /// The client behind the mount, for statistics.
    pub fn client(&self) -> &Arc<Client> {
        &self.client
    }

    /// Returns when the mount was taken off from outside (umount(8)).
    pub async fn wait(&self) {
        self.served.wait().await;
    }

    /// Takes the mount off if it is still there, writes back what waits and ends the session, all
    /// within bounds. Says what could not be written back.
    pub fn unmount(self) -> BoxFuture<Unmounted> {
        Box::pin(self.end())
    }

    async fn end(self) -> Unmounted {
        let Mounted { client, served } = self;
        served.detach().await;
        let result = client.unmount(UNMOUNT_LIMIT).await;
        if result.lost_files > 0 {
            error!(
                files = result.lost_files,
                bytes = result.lost_bytes,
                "written bytes could not be stored and are lost"
            );
        }
        if result.lost_edits > 0 {
            error!(edits = result.lost_edits, "changes of the tree could not be sent and are lost");
        }
        if !result.said_goodbye {
            warn!(
                "the MetaServer was not told of the unmount; it ends the session by itself after its validity"
            );
        }
        result
    }
}

fn client_config(source: &Source, mount_point: &Path, options: &MountOptions) -> ClientConfig {
    let mut config = ClientConfig {
        metas: source.metas.clone(),
        namespace: source.namespace.clone(),
        subdir: source.subdir.clone().into_bytes(),
        mount_point: mount_point.display().to_string(),
        wait: options.timeout.map_or(Wait::Hard, Wait::Soft),
        sync: options.sync,
        ..ClientConfig::default()
    };
    if let Some(bytes) = options.cache_bytes {
        config.read_cache_bytes = bytes;
    }
    if let Some(bytes) = options.dirty_bytes {
        config.dirty_bytes = bytes;
    }
    config
}

/// Runs what blocks on a thread for that.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(value) => value,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

/// The absolute path of a directory that can be mounted on.
async fn check_mount_point(mount_point: &Path) -> Result<PathBuf, MountError> {
    let failed = |error| MountError::MountPoint { mount_point: mount_point.to_owned(), error };
    let path = mount_point.to_owned();
    let look = tokio::task::spawn_blocking(move || {
        let path = path.canonicalize()?;
        if path.metadata()?.is_dir() { Ok(path) } else { Err(io::Error::from_raw_os_error(libc::ENOTDIR)) }
    });
    match tokio::time::timeout(MOUNT_POINT_LIMIT, look).await {
        Ok(Ok(Ok(path))) => Ok(path),
        Ok(Ok(Err(error))) if error.raw_os_error() == Some(libc::ENOTCONN) => Err(failed(io::Error::other(
            "a mount whose daemon died is still there; take it off first (umount -l)",
        ))),
        Ok(Ok(Err(error))) => Err(failed(error)),
        Ok(Err(_)) => Err(failed(io::Error::other("looking at it failed"))),
        Err(_) => Err(failed(io::Error::new(
            io::ErrorKind::TimedOut,
            "it does not answer; is a hanging mount there? (umount -l)",
        ))),
    }
}

/// The device number of the mount, once it answers.
async fn first_answer(mount_point: &Path) -> io::Result<u64> {
    let path = mount_point.to_owned();
    let look = tokio::task::spawn_blocking(move || {
        path.metadata().map(|metadata| std::os::unix::fs::MetadataExt::dev(&metadata))
    });
    match tokio::time::timeout(ANSWER_LIMIT, look).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(error)) => Err(io::Error::other(error)),
        Err(_) => Err(io::Error::new(
            io::ErrorKind::TimedOut,
            format!("no answer within {} s", ANSWER_LIMIT.as_secs()),
        )),
    }
}

/// Lets the kernel read further ahead than its 128 KiB; needs root, and works less well without.
fn raise_read_ahead(device: u64, bytes: u64) {
    let path = format!("/sys/class/bdi/{}:{}/read_ahead_kb", libc::major(device), libc::minor(device));
    if let Err(error) = std::fs::write(&path, (bytes / 1024).to_string()) {
        info!(%path, %error, "could not raise the kernel's readahead: sequential reads are slower");
    }
}
