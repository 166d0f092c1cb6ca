//! Exec, Attach and PortForward: CRI answers each with a URL, and the client that opens the URL
//! gets the streams.
//!
//! ```text
//! urls -> http -+-> spdy/serve ------+-> session -> copy        exec and attach
//!               '-> websocket/serve -'-> portforward            ports of a pod
//! ```
//!
//! `http` accepts connections and finds the session of a URL. `spdy/serve` and `websocket/serve`
//! negotiate with the client and open its streams; what they talk over (`spdy/connection`,
//! `websocket/socket` and `tunnel`) knows nothing about sessions. The streams look the same from
//! then on (`streams`), and each session is a task of its own that ends with its connection.

mod copy;
mod descriptor;
mod http;
mod packet;
mod portforward;
mod session;
mod spdy;
mod streams;
mod tls;
mod upgrade;
mod urls;
mod websocket;

#[cfg(fuzzing)]
pub use self::spdy::fuzz as fuzz_spdy;
pub use self::{http::Streaming, session::Session, streams::StreamOptions};
