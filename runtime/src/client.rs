//! The command line's side of the daemon: what `berthd images` asks of one that runs.

use std::{
    fs::{self, File},
    io::IsTerminal,
    os::fd::{AsFd, AsRawFd, BorrowedFd},
    path::Path,
};

use anyhow::{Context, anyhow, bail};
use berth_proto::berth::{
    CheckRequest, CheckResponse, ExportRequest, ImportRequest, ImportedImage, check_response::State,
    images_client::ImagesClient,
};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::{
    Status,
    transport::{Channel, Endpoint},
};

/// Adds the images in `file`, or in what is piped in where that is `-`.
///
/// # Errors
/// No daemon answers, or it refuses what is in the file.
pub(crate) async fn import(socket: &Path, file: &Path, name: Option<&str>) -> anyhow::Result<Vec<ImportedImage>> {
    let opened;
    let stdin = std::io::stdin();
    let archive: BorrowedFd<'_> = if file == Path::new("-") {
        if stdin.is_terminal() {
            bail!("standard input is a terminal: pipe an archive into it, or name a file");
        }
        stdin.as_fd()
    } else {
        opened = File::open(file).with_context(|| format!("open {}", file.display()))?;
        opened.as_fd()
    };
    let request = ImportRequest { path: as_daemon_sees(archive), name: name.unwrap_or_default().to_owned() };
    let answer = ImagesClient::new(connect(socket).await?).import(request).await;
    let response = answer.map_err(|status| anyhow!("{}", status.message()))?;
    Ok(response.into_inner().images)
}

/// Writes the images `names` into `file`, or to standard output where there is none.
///
/// # Errors
/// No daemon answers, or it has no such image; a file that was made is removed then.
pub(crate) async fn export(socket: &Path, file: Option<&Path>, names: Vec<String>) -> anyhow::Result<()> {
    let opened;
    let stdout = std::io::stdout();
    let archive: BorrowedFd<'_> = match file {
        None if stdout.is_terminal() => {
            bail!("standard output is a terminal: pipe it somewhere, or name a file with --output")
        }
        None => stdout.as_fd(),
        Some(file) => {
            opened = File::create(file).with_context(|| format!("make {}", file.display()))?;
            opened.as_fd()
        }
    };
    let request = ExportRequest { path: as_daemon_sees(archive), names };
    let exported = match connect(socket).await {
        Ok(channel) => {
            ImagesClient::new(channel).export(request).await.map_err(|status| anyhow!("{}", status.message()))
        }
        Err(error) => Err(error),
    };
    if let (Err(_), Some(file)) = (&exported, file) {
        let _ = fs::remove_file(file);
    }
    exported.map(drop)
}

/// Verifies every image; calls `told` with each as it is done. How many are damaged in the end.
///
/// # Errors
/// No daemon answers.
pub(crate) async fn check(socket: &Path, repair: bool, mut told: impl FnMut(&CheckResponse)) -> anyhow::Result<usize> {
    let refused = |status: Status| anyhow!("{}", status.message());
    let answer = ImagesClient::new(connect(socket).await?).check(CheckRequest { repair }).await;
    let mut images = answer.map_err(refused)?.into_inner();
    let mut damaged = 0;
    while let Some(image) = images.message().await.map_err(refused)? {
        damaged += usize::from(image.state() == State::Damaged);
        told(&image);
    }
    Ok(damaged)
}

/// The daemon opens it by this name, whatever it sees of this process' files and working directory.
fn as_daemon_sees(file: BorrowedFd<'_>) -> String {
    format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd())
}

async fn connect(socket: &Path) -> anyhow::Result<Channel> {
    let path = socket.to_owned();
    let connector = tower::service_fn(move |_| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    });
    let connected = Endpoint::from_static("http://localhost").connect_with_connector(connector).await;
    connected.map_err(|error| {
        let (socket, error) = (socket.display(), anyhow::Error::from(error));
        anyhow!("no berthd answers at {socket}: {}: is it running, and is this root?", error.root_cause())
    })
}
