//! SPDY sessions: which version of the protocol both sides know, and the streams that a client has
//! to open before its session begins.

use std::{collections::BTreeMap, time::Duration};

use berth_base::observe::Open;
use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode, header::HeaderName};
use http_body_util::Full;
use hyper::body::Incoming;

use super::{
    super::{
        portforward,
        session::{Process, Session},
        streams::{Output, StatusFormat, StreamOptions, Streams},
        upgrade::{Io, refuse, switching, upgraded, words},
    },
    connection::{Connection, Stream},
};

/// How long a client may take to open all of its streams.
const OPENING: Duration = Duration::from_secs(30);

const STREAM_PROTOCOL: HeaderName = HeaderName::from_static("x-stream-protocol-version");
const ACCEPTED_PROTOCOLS: HeaderName =
    HeaderName::from_static("x-accepted-stream-protocol-versions");

/// A version of the exec and attach protocol (`k8s.io/apimachinery/pkg/util/remotecommand`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Protocol {
    name: &'static str,
    status_format: StatusFormat,
    /// Clients with a terminal open a fifth stream, for its size.
    resizes: bool,
}

/// Newest first, because that is which one is taken.
const PROTOCOLS: [Protocol; 4] = [
    Protocol { name: "v4.channel.k8s.io", status_format: StatusFormat::Json, resizes: true },
    Protocol { name: "v3.channel.k8s.io", status_format: StatusFormat::Text, resizes: true },
    Protocol { name: "v2.channel.k8s.io", status_format: StatusFormat::Text, resizes: false },
    Protocol { name: "channel.k8s.io", status_format: StatusFormat::Text, resizes: false },
];
const FORWARD_PROTOCOL: &str = "portforward.k8s.io";

/// The response to an upgrade request, and the session in a task of its own.
pub(crate) fn respond(
    session: Session,
    counted: Open,
    mut request: Request<Incoming>,
) -> Response<Full<Bytes>> {
    let offered = words(request.headers(), &STREAM_PROTOCOL);
    let is_offered = |name: &str| offered.iter().any(|one| one == name);
    let on_upgrade = hyper::upgrade::on(&mut request);
    let name = match session {
        Session::PortForward(forward) => {
            if !is_offered(FORWARD_PROTOCOL) {
                return refuse_protocols(&offered, &[FORWARD_PROTOCOL]);
            }
            // In a task, because the connection is free only once the response was sent.
            tokio::spawn(async move {
                let _counted = counted;
                let Some((io, early)) = upgraded(on_upgrade).await else { return };
                portforward::serve(Connection::new(io, early), forward.netns).await;
            });
            FORWARD_PROTOCOL
        }
        Session::Process(process) => {
            let protocol = PROTOCOLS.into_iter().find(|protocol| is_offered(protocol.name));
            let Some(protocol) = protocol else {
                return refuse_protocols(&offered, &PROTOCOLS.map(|protocol| protocol.name));
            };
            tokio::spawn(async move {
                let _counted = counted;
                let Some((io, early)) = upgraded(on_upgrade).await else { return };
                serve(process, protocol, io, early).await;
            });
            protocol.name
        }
    };
    let mut response = switching("SPDY/3.1");
    response.headers_mut().insert(STREAM_PROTOCOL, HeaderValue::from_static(name));
    response
}

/// Tells a client which protocols it could have offered.
fn refuse_protocols(offered: &[String], known: &[&'static str]) -> Response<Full<Bytes>> {
    if offered.is_empty() {
        return refuse(StatusCode::BAD_REQUEST, "X-Stream-Protocol-Version is missing");
    }
    let why = "no protocol of X-Stream-Protocol-Version is known";
    let mut response = refuse(StatusCode::FORBIDDEN, why);
    for known in known {
        response.headers_mut().append(ACCEPTED_PROTOCOLS, HeaderValue::from_static(known));
    }
    response
}

async fn serve(process: Process, protocol: Protocol, io: Io, early: Bytes) {
    let mut connection = Connection::new(io, early);
    let opened = open_streams(&mut connection, process.options, protocol).await;
    // Further streams would never be read.
    connection.accept_no_more().await;
    match opened {
        Ok(streams) => process.run(streams).await,
        Err(reason) => tracing::info!("a streaming session did not begin: {reason}"),
    }
    connection.close().await;
}

/// Waits until the client has opened all streams that it asked for, in whatever order.
///
/// # Errors
/// It did not, or opened something else.
async fn open_streams(
    connection: &mut Connection,
    options: StreamOptions,
    protocol: Protocol,
) -> Result<Streams, String> {
    let mut types = vec!["error"];
    types.extend(options.stdin.then_some("stdin"));
    types.extend(options.stdout.then_some("stdout"));
    types.extend(options.stderr.then_some("stderr"));
    types.extend((options.tty && protocol.resizes).then_some("resize"));
    let gone = connection.gone();
    // A client that opens some and then waits must not keep a session for ever.
    let mut streams = tokio::time::timeout(OPENING, accept_all(connection, &types))
        .await
        .map_err(|_| format!("not all streams were opened within {} s", OPENING.as_secs()))??;
    let error = streams.remove("error").ok_or("no error stream")?;
    Ok(Streams {
        stdin: streams.remove("stdin").map(|stream| stream.input),
        stdout: streams.remove("stdout").map(|stream| Output::Spdy(stream.output)),
        stderr: streams.remove("stderr").map(|stream| Output::Spdy(stream.output)),
        resize: streams.remove("resize").map(|stream| stream.input),
        error: Output::Spdy(error.output),
        status_format: protocol.status_format,
        gone,
    })
}

/// One stream of each of these types.
async fn accept_all(
    connection: &mut Connection,
    types: &[&'static str],
) -> Result<BTreeMap<&'static str, Stream>, String> {
    let mut streams = BTreeMap::new();
    while streams.len() < types.len() {
        let Some(stream) = connection.accept().await else {
            return Err("the client left".to_owned());
        };
        // `v1.StreamType` of Kubernetes.
        let kind = stream.headers.get("streamtype").cloned().unwrap_or_default();
        let Some(kind) = types.iter().find(|known| **known == kind) else {
            return Err(format!("a stream of type {kind:?} was not asked for"));
        };
        if streams.insert(*kind, stream).is_some() {
            return Err(format!("two streams of type {kind}"));
        }
    }
    Ok(streams)
}
