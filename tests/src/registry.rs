//! Registries on a machine's loopback interface: Debian's docker-registry, and one that misbehaves
//! as a test wants.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use crate::{
    image::{Image, digest},
    machine::Machine,
};

/// Makes a self-signed certificate for 127.0.0.1 and its key: `path` with the extensions `.crt` and
/// `.key`.
///
/// # Panics
/// openssl is not installed.
pub fn certificate(path: &Path) -> (PathBuf, PathBuf) {
    let certificate = path.with_extension("crt");
    let key = path.with_extension("key");
    let made = Command::new("openssl")
        .args([
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
            "-days",
            "2",
        ])
        .args(["-subj", "/CN=registry", "-addext", "subjectAltName=IP:127.0.0.1"])
        .args(["-addext", "basicConstraints=critical,CA:FALSE", "-keyout"])
        .arg(&key)
        .arg("-out")
        .arg(&certificate)
        .output()
        .expect("openssl is installed");
    assert!(made.status.success(), "openssl: {}", String::from_utf8_lossy(&made.stderr));
    (certificate, key)
}

/// As htpasswd(1) writes it.
const PASSWORDS: &str = "u:$2b$12$cMW7YFxyNiCQCX3T0YxVXOC/FbXbbQLsfOimnAZl/mn/P5vGfNcPK\n";

/// Debian's docker-registry, which is the server of the distribution project.
#[derive(Debug)]
pub struct DockerRegistry {
    child: Child,
    /// Address and port, as in `127.0.0.1:5000`.
    pub host: String,
}

impl DockerRegistry {
    /// Starts one on a machine's loopback interface and waits until it serves.
    pub async fn start(machine: &Machine) -> Self {
        Self::started(
            machine,
            Self::launch(machine.command("docker-registry"), machine.dir.path(), 5000),
        )
        .await
    }

    /// As `start`, over https with a certificate of its own; returns the path of that too.
    pub async fn start_tls(machine: &Machine) -> (Self, PathBuf) {
        Self::start_tls_with(machine, None).await
    }

    /// As `start_tls`, for clients that present the certificate at `client`, where there is one.
    pub async fn start_tls_with(machine: &Machine, client: Option<&Path>) -> (Self, PathBuf) {
        let authorities =
            client.map(|client| ("REGISTRY_HTTP_TLS_CLIENTCAS", format!("[{}]", client.display())));
        Self::start_tls_as(machine, authorities.into_iter().collect()).await
    }

    /// As `start_tls`, for clients that have a token of the server at `realm`. No token is valid,
    /// so each request is answered with that challenge.
    pub async fn start_tls_asking(machine: &Machine, realm: &str) -> (Self, PathBuf) {
        let roots = machine.path("registry").with_extension("crt").display().to_string();
        let environment = [
            ("REGISTRY_AUTH_TOKEN_REALM", realm.to_owned()),
            ("REGISTRY_AUTH_TOKEN_SERVICE", "s".to_owned()),
            ("REGISTRY_AUTH_TOKEN_ISSUER", "i".to_owned()),
            ("REGISTRY_AUTH_TOKEN_ROOTCERTBUNDLE", roots),
        ];
        Self::start_tls_as(machine, environment.to_vec()).await
    }

    /// As `start`, for clients that are `u` with the password `p`.
    pub async fn start_with_password(machine: &Machine) -> Self {
        let passwords = machine.path("passwords");
        fs::write(&passwords, PASSWORDS).expect("write the registry's passwords");
        let mut command = machine.command("docker-registry");
        command
            .env("REGISTRY_AUTH", "htpasswd")
            .env("REGISTRY_AUTH_HTPASSWD_REALM", "registry")
            .env("REGISTRY_AUTH_HTPASSWD_PATH", &passwords);
        let directory = machine.path("private-registry");
        fs::create_dir(&directory).expect("make a directory");
        Self::started(machine, Self::launch(command, &directory, 5002)).await
    }

    async fn start_tls_as(machine: &Machine, environment: Vec<(&str, String)>) -> (Self, PathBuf) {
        let (certificate, key) = certificate(&machine.path("registry"));
        let mut command = machine.command("docker-registry");
        command
            .env("REGISTRY_HTTP_TLS_CERTIFICATE", &certificate)
            .env("REGISTRY_HTTP_TLS_KEY", &key);
        command.envs(environment);
        let registry = Self::launch(command, machine.dir.path(), 5001);
        (Self::started(machine, registry).await, certificate)
    }

    async fn started(machine: &Machine, registry: Self) -> Self {
        for _ in 0..2000 {
            if machine.in_network(|| TcpStream::connect(&registry.host)).is_ok() {
                return registry;
            }
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        panic!(
            "docker-registry does not answer: {}",
            fs::read_to_string(machine.path("registry.log")).unwrap_or_default()
        );
    }

    /// Runs `command`, which is docker-registry, with its files in `directory`, and does not wait
    /// until it serves.
    pub fn launch(mut command: Command, directory: &Path, port: u16) -> Self {
        let host = format!("127.0.0.1:{port}");
        let config = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\n\
                http: {{addr: {host}}}\n",
            directory.join("registry").display()
        );
        let path = directory.join("registry.yml");
        fs::write(&path, config).expect("write the registry's configuration");
        let log =
            fs::File::create(directory.join("registry.log")).expect("make the registry's log");
        let child = command.arg("serve").arg(&path).stdout(Stdio::null()).stderr(log).spawn();
        Self { child: child.expect("docker-registry is installed"), host }
    }

    /// Uploads an image, and returns the name to pull it by.
    pub fn push(&self, machine: &Machine, repository: &str, tag: &str, image: &Image) -> String {
        self.push_by(
            machine,
            &reqwest::Client::new(),
            &format!("http://{}/v2/{repository}", self.host),
            (tag, image),
        );
        format!("{}/{repository}:{tag}", self.host)
    }

    /// As `push`, to a registry over https; its certificate is not verified.
    pub fn push_tls(
        &self,
        machine: &Machine,
        repository: &str,
        tag: &str,
        image: &Image,
    ) -> String {
        self.push_tls_as(machine, None, repository, (tag, image))
    }

    /// As `push_tls`, with a certificate and key of the client, as PEM.
    pub fn push_tls_as(
        &self,
        machine: &Machine,
        pem: Option<&[u8]>,
        repository: &str,
        (tag, image): (&str, &Image),
    ) -> String {
        let builder = reqwest::Client::builder().tls_danger_accept_invalid_certs(true);
        let identity =
            pem.map(|pem| reqwest::Identity::from_pem(pem).expect("certificate and key"));
        let builder = identity.into_iter().fold(builder, reqwest::ClientBuilder::identity);
        let client = builder.build().expect("make a client");
        self.push_by(
            machine,
            &client,
            &format!("https://{}/v2/{repository}", self.host),
            (tag, image),
        );
        format!("{}/{repository}:{tag}", self.host)
    }

    fn push_by(
        &self,
        machine: &Machine,
        client: &reqwest::Client,
        base: &str,
        (tag, image): (&str, &Image),
    ) {
        machine.in_network(|| {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("start a runtime");
            runtime
                .block_on(upload(client, base, tag, image))
                .unwrap_or_else(|error| panic!("push to {base}: {error}"));
        });
    }
}

/// Uploads an image to the repository at `base`, a URL that has `/v2/` in it.
///
/// # Errors
/// The registry cannot be reached, or refuses a blob or the manifest.
pub async fn upload(
    client: &reqwest::Client,
    base: &str,
    tag: &str,
    image: &Image,
) -> Result<(), reqwest::Error> {
    for blob in &image.blobs {
        let started =
            client.post(format!("{base}/blobs/uploads/")).send().await?.error_for_status()?;
        let location = started.headers()["location"].to_str().expect("a URL").to_owned();
        let joint = if location.contains('?') { '&' } else { '?' };
        client
            .put(format!("{location}{joint}digest={}", digest(blob)))
            .body(blob.clone())
            .send()
            .await?
            .error_for_status()?;
    }
    let manifest = client
        .put(format!("{base}/manifests/{tag}"))
        .header("content-type", &image.media_type)
        .body(image.manifest.clone());
    manifest.send().await?.error_for_status().map(drop)
}

impl Drop for DockerRegistry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The response of a `FakeRegistry`.
#[derive(Clone, Debug, Default)]
pub struct Response {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// The connection is closed after this many bytes of the body.
    pub cut_after: Option<usize>,
    /// This many bytes of the body are sent every 20 ms.
    pub pace: Option<usize>,
}

/// A request, as far as tests inspect it.
#[derive(Clone, Debug)]
pub struct Request {
    pub method: String,
    /// The path with its query.
    pub path: String,
    /// Names in lower case, and values.
    pub headers: Vec<(String, String)>,
    pub body: String,
    /// The body as it was sent, as far as it came.
    pub bytes: Vec<u8>,
}

impl Request {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// The byte range that is requested of a blob of `length` bytes, as start and end; `None`
    /// without a Range header.
    pub fn range(&self, length: usize) -> Option<(usize, usize)> {
        let (start, end) = self.header("range")?.strip_prefix("bytes=")?.split_once('-')?;
        let end = if end.is_empty() { length } else { end.parse::<usize>().ok()? + 1 };
        Some((start.parse::<usize>().ok()?.min(length), end.min(length)))
    }
}

type Override = dyn Fn(&Request) -> Option<Response> + Send + Sync;

/// A registry that serves one image from memory, and whatever its `rule` returns instead.
#[derive(Debug)]
pub struct FakeRegistry {
    pub host: String,
    requests: Arc<Mutex<Vec<Request>>>,
    connections: Arc<AtomicUsize>,
}

impl FakeRegistry {
    /// Serves `image` under every repository and tag.
    pub fn start(
        machine: &Machine,
        image: Image,
        rule: impl Fn(&Request) -> Option<Response> + Send + Sync + 'static,
    ) -> Self {
        let listener = machine.in_network(|| TcpListener::bind("127.0.0.1:0")).expect("bind");
        let host = listener.local_addr().expect("bound").to_string();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let connections = Arc::new(AtomicUsize::new(0));
        // Nothing ends these threads before the test program does, so tests need not keep the value.
        let (seen, counted, rule): (_, _, Arc<Override>) =
            (requests.clone(), connections.clone(), Arc::new(rule));
        let image = Arc::new(image);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                counted.fetch_add(1, Ordering::Relaxed);
                let seen = seen.clone();
                let rule = rule.clone();
                let image = image.clone();
                thread::spawn(
                    move || while serve(&stream, &seen, &rule, &image).unwrap_or(false) {},
                );
            }
        });
        Self { host, requests, connections }
    }

    /// How many connections were accepted.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    /// All requests so far.
    pub fn requests(&self) -> Vec<Request> {
        self.requests.lock().expect("no panic").clone()
    }
}

/// Serves one request; returns whether the connection stays open.
fn serve(
    stream: &TcpStream,
    seen: &Mutex<Vec<Request>>,
    rule: &Arc<Override>,
    image: &Image,
) -> std::io::Result<bool> {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Ok(false);
    }
    let mut words = line.split(' ').map(str::to_owned);
    let method = words.next().unwrap_or_default();
    let path = words.next().unwrap_or_default();
    let mut headers = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        match line.trim_end().split_once(": ") {
            Some((name, value)) => headers.push((name.to_lowercase(), value.to_owned())),
            None => break,
        }
    }
    let mut request = Request { method, path, headers, body: String::new(), bytes: Vec::new() };
    let whole = match request.header("transfer-encoding") {
        Some(_) => read_chunks(&mut reader, &mut request.bytes),
        None => {
            let length = request.header("content-length").and_then(|length| length.parse().ok());
            let mut body = reader.take(length.unwrap_or(0));
            body.read_to_end(&mut request.bytes).map(drop)
        }
    };
    request.body = String::from_utf8_lossy(&request.bytes).into_owned();
    seen.lock().expect("no panic").push(request.clone());
    let response = rule(&request).unwrap_or_else(|| stored(&request, image));
    // A client that has gone gets no response, whatever the rule does with what has come.
    whole?;
    let mut head =
        format!("HTTP/1.1 {} x\r\ncontent-length: {}\r\n", response.status, response.body.len());
    response.headers.iter().for_each(|(name, value)| head += &format!("{name}: {value}\r\n"));
    let mut writer = stream;
    writer.write_all((head + "\r\n").as_bytes())?;
    // The length of the body was announced, and there is none.
    if request.method == "HEAD" {
        return Ok(true);
    }
    let body = &response.body
        [..response.cut_after.unwrap_or(response.body.len()).min(response.body.len())];
    for part in body.chunks(response.pace.unwrap_or(usize::MAX)) {
        writer.write_all(part)?;
        if response.pace.is_some() {
            #[expect(clippy::disallowed_methods, reason = "this is what a slow server does")]
            thread::sleep(std::time::Duration::from_millis(20));
        }
    }
    if response.cut_after.is_some() {
        stream.shutdown(std::net::Shutdown::Both)?;
    }
    Ok(response.cut_after.is_none())
}

/// Reads a body in chunks (RFC 9112 section 7.1), as far as it comes.
fn read_chunks(reader: &mut impl BufRead, body: &mut Vec<u8>) -> std::io::Result<()> {
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let length = u64::from_str_radix(line.trim_end(), 16)
            .map_err(|_| std::io::Error::from(std::io::ErrorKind::UnexpectedEof))?;
        let read = reader.by_ref().take(length).read_to_end(body)?;
        if (read as u64) < length {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        reader.read_line(&mut String::new())?;
        if length == 0 {
            return Ok(());
        }
    }
}

/// What a registry that has `image` under every name answers.
pub(crate) fn stored(request: &Request, image: &Image) -> Response {
    let path = request.path.split('?').next().unwrap_or_default();
    let last = path.rsplit('/').next().unwrap_or_default();
    if path.contains("/manifests/") {
        let headers = [
            ("content-type", image.media_type.clone()),
            ("docker-content-digest", digest(&image.manifest)),
        ];
        let headers = headers.map(|(name, value)| (name.to_owned(), value)).to_vec();
        return Response {
            status: 200,
            headers,
            body: image.manifest.clone(),
            ..Response::default()
        };
    }
    // By digest, and for any repository.
    let Some(blob) = image.blobs.iter().find(|blob| digest(blob) == last) else {
        return Response { status: 404, ..Response::default() };
    };
    let Some((start, end)) = request.range(blob.len()) else {
        return Response { status: 200, body: blob.clone(), ..Response::default() };
    };
    let said = format!("bytes {start}-{}/{}", end.saturating_sub(1), blob.len());
    let headers = vec![("content-range".to_owned(), said)];
    Response { status: 206, headers, body: blob[start..end].to_vec(), ..Response::default() }
}
