//! `berthd images`: what the command line asks of a daemon that runs.

use std::{
    fs::{self, File},
    io::IsTerminal,
    os::fd::{AsFd, AsRawFd, BorrowedFd},
    path::Path,
};

use anyhow::{Context, anyhow, bail};
use berth_proto::berth::{
    CheckRequest, CheckResponse, ExportRequest, ImportRequest, ImportedImage,
    check_response::State, images_client::ImagesClient,
};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::{
    Status,
    transport::{Channel, Endpoint},
};

/// Adds the images in the archive `file`, or in standard input if that is `-`.
///
/// # Errors
/// No daemon answers, or it refuses the archive.
pub(crate) async fn import(
    socket: &Path,
    file: &Path,
    name: Option<&str>,
) -> anyhow::Result<Vec<ImportedImage>> {
    // Lives as long as the request: the daemon opens it by its descriptor's number.
    let opened;
    let stdin = std::io::stdin();
    let archive: BorrowedFd<'_> = if file == Path::new("-") {
        // The daemon would wait for an archive to be typed.
        if stdin.is_terminal() {
            bail!("standard input is a terminal: pipe an archive into it, or name a file");
        }
        stdin.as_fd()
    } else {
        opened = File::open(file).with_context(|| format!("open {}", file.display()))?;
        opened.as_fd()
    };
    let request =
        ImportRequest { path: path_for_daemon(archive), name: name.unwrap_or_default().to_owned() };
    let response = ImagesClient::new(connect(socket).await?).import(request).await;
    Ok(response.map_err(message)?.into_inner().images)
}

/// Writes the images `names` as one archive into `file`, or to standard output if that is `None`.
///
/// # Errors
/// No daemon answers, or it has no such image. The file is removed then.
pub(crate) async fn export(
    socket: &Path,
    file: Option<&Path>,
    names: Vec<String>,
) -> anyhow::Result<()> {
    let opened;
    let stdout = std::io::stdout();
    let archive: BorrowedFd<'_> = match file {
        // An archive is not text.
        None if stdout.is_terminal() => {
            bail!("standard output is a terminal: pipe it somewhere, or name a file with --output")
        }
        None => stdout.as_fd(),
        Some(file) => {
            opened = File::create(file).with_context(|| format!("create {}", file.display()))?;
            opened.as_fd()
        }
    };
    let request = ExportRequest { path: path_for_daemon(archive), names };
    let exported = match connect(socket).await {
        Ok(channel) => ImagesClient::new(channel).export(request).await.map_err(message),
        Err(error) => Err(error),
    };
    if let (Err(_), Some(file)) = (&exported, file) {
        // A part of an archive is of no use. The error of the export is the one that matters.
        let _ = fs::remove_file(file);
    }
    exported.map(drop)
}

/// Verifies every image and calls `report` with each as it is done. Returns how many are damaged,
/// without those that were repaired.
///
/// # Errors
/// No daemon answers.
pub(crate) async fn check(
    socket: &Path,
    repair: bool,
    mut report: impl FnMut(&CheckResponse),
) -> anyhow::Result<usize> {
    let mut client = ImagesClient::new(connect(socket).await?);
    let response = client.check(CheckRequest { repair }).await;
    let mut images = response.map_err(message)?.into_inner();
    let mut damaged = 0;
    while let Some(image) = images.message().await.map_err(message)? {
        damaged += usize::from(image.state() == State::Damaged);
        report(&image);
    }
    Ok(damaged)
}

/// A path by which the daemon opens a file of this process (proc_pid_fd(5)): it works for pipes,
/// and for a daemon with another root or working directory.
fn path_for_daemon(file: BorrowedFd<'_>) -> String {
    format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd())
}

async fn connect(socket: &Path) -> anyhow::Result<Channel> {
    let path = socket.to_owned();
    let connector = tower::service_fn(move |_| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    });
    // gRPC wants a host in the address; the connector does not look at it.
    let endpoint = Endpoint::from_static("http://localhost");
    endpoint.connect_with_connector(connector).await.map_err(|error| {
        // What tonic says about it begins with "transport error"; the cause is what helps.
        let error = anyhow::Error::from(error);
        let cause = error.root_cause();
        let socket = socket.display();
        anyhow!("no berthd answers at {socket}: {cause}: is it running, and is this root?")
    })
}

/// An error of the daemon, which needs no code in front of it on a terminal.
fn message(status: Status) -> anyhow::Error {
    anyhow!("{}", status.message())
}
