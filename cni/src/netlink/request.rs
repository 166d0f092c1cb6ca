//! Lists of the kernel as a whole, and its errors in words.

use std::time::{Duration, Instant};

use berth_cni::{Error, code};
use futures_util::StreamExt;
use netlink_packet_core::{
    NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use rtnetlink::Handle;

/// A list of the kernel, complete. The kernel hands out a long list in parts; when the list changes
/// between two of them, an entry that was there all the time may be in neither. It flags such a
/// list with NLM_F_DUMP_INTR, and then the list is read again.
///
/// # Errors
/// The kernel refuses, or the list has changed during each attempt for ten seconds.
pub(super) async fn dump(
    handle: &Handle,
    what: &str,
    request: RouteNetlinkMessage,
) -> Result<Vec<RouteNetlinkMessage>, Error> {
    const PATIENCE: Duration = Duration::from_secs(10);
    let begun = Instant::now();
    loop {
        let listed = dump_once(handle, request.clone()).await;
        match listed.map_err(|error| failed("list", what, &error))? {
            Some(messages) => return Ok(messages),
            // Without an end an ADD would spin for ever on a node where interfaces come and go.
            None if begun.elapsed() > PATIENCE => {
                return Err(Error::new(code::KERNEL, format!("list {what}: they keep changing")));
            }
            None => {}
        }
    }
}

/// `None` when the list changed meanwhile. Any part may carry the flag, the final NLMSG_DONE
/// included.
async fn dump_once(
    handle: &Handle,
    request: RouteNetlinkMessage,
) -> Result<Option<Vec<RouteNetlinkMessage>>, rtnetlink::Error> {
    let mut packet = NetlinkMessage::from(request);
    packet.header.flags = NLM_F_REQUEST | NLM_F_DUMP;
    let answers: Vec<NetlinkMessage<RouteNetlinkMessage>> =
        handle.clone().request(packet)?.collect().await;
    if answers.iter().any(|answer| answer.header.flags & NLM_F_DUMP_INTR != 0) {
        return Ok(None);
    }
    let mut messages = Vec::new();
    for answer in answers {
        match answer.payload {
            NetlinkPayload::InnerMessage(message) => messages.push(message),
            // An error while the list is made is the code of its end.
            NetlinkPayload::Done(ref done) if done.code == 0 => {}
            NetlinkPayload::Error(error) => return Err(rtnetlink::Error::NetlinkError(error)),
            _ => return Err(rtnetlink::Error::UnexpectedMessage(answer)),
        }
    }
    Ok(Some(messages))
}

/// Whether the kernel answered with this error number.
pub(super) fn is(error: &rtnetlink::Error, errno: i32) -> bool {
    matches!(error, rtnetlink::Error::NetlinkError(message) if message.raw_code() == -errno)
}

/// `WHAT SUBJECT: CAUSE`, with the kernel's own words for an error number.
pub(crate) fn failed(what: &str, subject: &str, error: &rtnetlink::Error) -> Error {
    let cause = match error {
        rtnetlink::Error::NetlinkError(message) => message.to_io().to_string(),
        other => other.to_string(),
    };
    Error::new(code::KERNEL, format!("{what} {subject}: {cause}"))
}
