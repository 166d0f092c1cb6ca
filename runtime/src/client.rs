//! The command line's side of the daemon: what `berthd images` asks of one that runs.

use std::{
    fs::File,
    io::IsTerminal,
    os::fd::{AsFd, AsRawFd, BorrowedFd},
    path::Path,
};

use anyhow::{Context, anyhow, bail};
use berth_proto::berth::{ImportRequest, ImportedImage, images_client::ImagesClient};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};

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
    // Opened by the daemon, whatever it sees of this process' files and working directory.
    let path = format!("/proc/{}/fd/{}", std::process::id(), archive.as_raw_fd());
    let request = ImportRequest { path, name: name.unwrap_or_default().to_owned() };
    let answer = ImagesClient::new(connect(socket).await?).import(request).await;
    let response = answer.map_err(|status| anyhow!("{}", status.message()))?;
    Ok(response.into_inner().images)
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
