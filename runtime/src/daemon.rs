//! The daemon: it locks its root directory, recovers what is on disk, and serves. It saves nothing
//! when it ends, because the disk always says everything.

use std::{fs, os::unix::fs::PermissionsExt, path::Path, sync::Arc};

use anyhow::{Context, bail};
use berth_base::{blocking, config::Config, layout::Layout, socket, trash};
use berth_node::{Node, host::Host, recover};
use berth_shim::record;
use berth_streaming::Streaming;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::signal::unix::{SignalKind, signal};

use crate::{
    activation, arguments::LogFormat, exporter, layout_version, log, manager, root_lock::RootLock,
};

/// Serves until a signal or an error ends the process.
pub(crate) fn run(config: &Config, log_level: &str, log_format: LogFormat) -> anyhow::Result<()> {
    // Before the log, because spans are exported by tasks of the runtime.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_keep_alive(blocking::KEEP_ALIVE)
        .build()
        .context("start the asynchronous runtime")?;
    let entered = runtime.enter();
    let traces = log::start(log_level, log_format)?;
    drop(entered);
    if !rustix::process::geteuid().is_root() {
        bail!("berthd must run as root, because it makes namespaces, mounts and cgroups");
    }
    raise_descriptors();
    let layout = Layout { root: config.root.clone(), state: config.state.clone() };
    if cfg!(debug_assertions) {
        // Set once, and by nobody else.
        let _ = record::BEFORE_ACCESS.set(blocking::check);
    }
    // Held until the process ends. The kernel then releases it, however the process ends.
    let _lock = prepare(&layout)?;
    let ended = runtime.block_on(serve(config));
    // Its drop sends the last spans.
    drop(traces);
    if let Err(error) = &ended {
        eprintln!("berthd: {error:#}");
    }
    // Ends at once, as by `kill -9`, whatever the daemon's tasks are doing: no destructor may run
    // that could touch the disk or the kernel.
    std::process::exit(i32::from(ended.is_err()))
}

/// Raises the limit of open files to the hard limit. Each container takes a descriptor, and the
/// usual soft limit of 1024 exists only for programs that use select(2). Containers do not inherit
/// it.
fn raise_descriptors() {
    let limit = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }) {
        tracing::warn!(?limit, "the limit of open files cannot be raised: {error}");
    }
}

/// Makes the directories, and takes the lock of the root.
///
/// # Errors
/// Another daemon holds the lock, or a directory is of a newer berthd.
fn prepare(layout: &Layout) -> anyhow::Result<RootLock> {
    // Only the state directory may be passed through by others: a container's bundle is below it,
    // and hooks of a container with a user namespace reach it as another user than root.
    let directories = [
        (layout.root.clone(), 0o700),
        (layout.state.clone(), 0o711),
        (layout.pins(), 0o700),
        (layout.ipam(), 0o700),
        (layout.oci(), 0o700),
        (layout.all_stopped(), 0o700),
    ];
    for (directory, mode) in &directories {
        make_directory(directory, *mode)?;
    }
    let lock = RootLock::take(layout)?;
    // Both only with the lock: an older daemon may still be deleting what is in its trash.
    layout_version::check(layout)?;
    trash::empty(layout).context("empty the trash")?;
    Ok(lock)
}

/// Makes a directory, or sets its mode. A root that is read-only and has the right mode stays as it
/// is: what is on it can still be listed, executed in and stopped.
fn make_directory(directory: &Path, mode: u32) -> anyhow::Result<()> {
    fs::create_dir_all(directory).with_context(|| {
        let shown = directory.display();
        format!("make {shown}: mount its disk writable, or choose other directories (--help)")
    })?;
    let found = fs::metadata(directory).with_context(|| format!("stat {}", directory.display()))?;
    if found.permissions().mode() & 0o7777 == mode {
        return Ok(());
    }
    fs::set_permissions(directory, fs::Permissions::from_mode(mode))
        .with_context(|| format!("chmod {}", directory.display()))
}

/// Everything between the lock and the end.
async fn serve(config: &Config) -> anyhow::Result<()> {
    // From here on these signals do not end the process by themselves. They are noticed at the end
    // of this function.
    let mut terminate = signal(SignalKind::terminate()).context("watch SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("watch SIGINT")?;
    tokio::spawn(blocking::keep_a_thread());
    let host = Arc::new(Host::new(config).await?);
    let streaming = Streaming::start(&config.streaming).await?;
    let nodes = recover::recover(host).await?;
    // The nodes live as long as the process. When the server ends it drops its reference, which
    // must not be the last one to a pod or a container.
    std::mem::forget(nodes.clone());
    let told = manager::Nodes { pods: nodes.kubernetes.clone(), engine: nodes.engine.clone() };
    let node = nodes.kubernetes;
    node.host.images.import_all(&config.images_dir).await;
    if let Some(address) = config.metrics.listen {
        exporter::start(address, node.clone(), streaming.clone()).await?;
    }
    let engine = start_engine(config, nodes.engine, node.clone()).await?;
    // Not earlier: only now do all containers hold their layers, and the others can be deleted.
    node.host.images.start_collecting();
    let listener = socket::listen(&config.listen, config.group.as_deref())?;
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        listen = %config.listen.display(),
        root = %config.root.display(),
        "serving CRI v1"
    );
    manager::ready(&told);
    tokio::select! {
        result = berth_cri::serve(node, streaming, listener) => result?,
        result = engine => result?,
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    manager::stopping(&told);
    Ok(())
}

/// Takes up the engine's containers, and listens for its clients, if it is configured. What is
/// returned serves them.
async fn start_engine(
    config: &Config,
    node: Arc<Node>,
    pods: Arc<Node>,
) -> anyhow::Result<impl Future<Output = anyhow::Result<()>>> {
    let serving = match &config.engine.listen {
        Some(path) => {
            let engine = berth_engine::start(node, pods).await?;
            // As the nodes, it lives as long as the process.
            std::mem::forget(engine.clone());
            let listener = match activation::socket_at(path)? {
                Some(listener) => listener,
                None => socket::listen(path, config.engine.group.as_deref())?,
            };
            tracing::info!(listen = %path.display(), "serving the Docker Engine API");
            Some((engine, listener))
        }
        None => None,
    };
    Ok(async {
        match serving {
            Some((engine, listener)) => berth_engine::serve(engine, listener).await,
            None => std::future::pending().await,
        }
    })
}
