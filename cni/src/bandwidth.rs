//! `bandwidth`: a token bucket filter (tc-tbf(8)) for each direction, as upstream's plugin makes
//! them.
//!
//! Packets to the pod leave the host through the pod's port, and the filter is on that. Linux can
//! only delay packets that leave an interface, so those that come from the pod are redirected
//! through an intermediate functional block (ifb), which has the filter for the other direction.

use berth_cni::{Bandwidth, Error, code};
use futures_util::StreamExt;
use netlink_packet_core::{
    DefaultNla, NLM_F_ACK, NLM_F_CREATE, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkMessage,
    NetlinkPayload,
};
use netlink_packet_route::{
    RouteNetlinkMessage,
    tc::{TcAttribute, TcHandle, TcMessage, TcOption},
};
use rtnetlink::{Handle, LinkIfb};

use crate::netlink::{failed, link};

/// How long a packet waits for tokens before it is dropped; upstream's value.
const LATENCY_MS: u64 = 25;
const TCA_TBF_PARMS: u16 = 1;
const TCA_TBF_RATE64: u16 = 4;
const TCA_TBF_BURST: u16 = 6;
const TC_LINKLAYER_ETHERNET: u8 = 1;
/// All protocols, in network byte order.
const ETH_P_ALL: u16 = 0x0003_u16.to_be();
/// Handle of the ingress queueing discipline, `ffff:`.
const INGRESS: u32 = 0xffff_0000;

/// Limits the pod behind `port` (name and index). `ifb` is the name of the interface through which
/// its own packets are redirected.
pub(crate) async fn add(
    handle: &Handle,
    port: (&str, u32),
    ifb: &str,
    limits: &Bandwidth,
) -> Result<(), Error> {
    let (name, index) = port;
    if limits.ingress_rate > 0 {
        bucket(handle, index, limits.ingress_rate, limits.ingress_burst).await?;
    }
    if limits.egress_rate > 0 {
        // One may be left by an ADD that was killed.
        link::delete(handle, ifb).await?;
        let made = handle.link().add(LinkIfb::new(ifb).up().build()).execute().await;
        made.map_err(|error| failed("make", ifb, &error))?;
        let way = link::find(handle, ifb)
            .await?
            .ok_or_else(|| Error::new(code::KERNEL, format!("{ifb} vanished")))?;
        bucket(handle, way.index, limits.egress_rate, limits.egress_burst).await?;
        let ingress = handle.qdisc().add(index as i32).ingress().execute().await;
        ingress.map_err(|error| failed("limit", name, &error))?;
        let filter = handle
            .traffic_filter(index as i32)
            .add()
            .parent(INGRESS)
            .protocol(ETH_P_ALL)
            .redirect(way.index);
        let filter = filter.map_err(|error| failed("limit", name, &error))?;
        filter.execute().await.map_err(|error| failed("limit", name, &error))?;
    }
    Ok(())
}

/// Makes a token bucket filter the root queueing discipline of an interface; `rate` is in bits a
/// second, `burst` in bits.
async fn bucket(handle: &Handle, index: u32, rate: u64, burst: u64) -> Result<(), Error> {
    let rate = rate / 8;
    let burst = (burst / 8) as u32;
    let limit = (rate * LATENCY_MS / 1000 + u64::from(burst)).min(u64::from(u32::MAX)) as u32;
    // struct tc_tbf_qopt: two of struct tc_ratespec, limit, buffer and mtu. Rates have 32 bits
    // there; TCA_TBF_RATE64 has the whole rate, and TCA_TBF_BURST the burst in bytes in the place
    // of `buffer`, which is a time.
    let mut parameters = vec![0, TC_LINKLAYER_ETHERNET, 0, 0, 0, 0, 0, 0];
    parameters.extend((rate.min(u64::from(u32::MAX)) as u32).to_ne_bytes());
    parameters.extend([0; 12]);
    parameters.extend(limit.to_ne_bytes());
    parameters.extend([0; 8]);
    let mut message = TcMessage::with_index(index as i32);
    message.header.parent = TcHandle::ROOT;
    message.attributes = vec![
        TcAttribute::Kind("tbf".to_owned()),
        TcAttribute::Options(vec![
            TcOption::Other(DefaultNla::new(TCA_TBF_PARMS, parameters)),
            TcOption::Other(DefaultNla::new(TCA_TBF_BURST, burst.to_ne_bytes().to_vec())),
            TcOption::Other(DefaultNla::new(TCA_TBF_RATE64, rate.to_ne_bytes().to_vec())),
        ]),
    ];
    let mut request = NetlinkMessage::from(RouteNetlinkMessage::NewQueueDiscipline(message));
    request.header.flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE;
    let refused = |cause: String| Error::new(code::KERNEL, format!("limit the bandwidth: {cause}"));
    let mut responses =
        handle.clone().request(request).map_err(|error| refused(error.to_string()))?;
    while let Some(response) = responses.next().await {
        // An acknowledgement is an error message without an error number.
        if let NetlinkPayload::Error(error) = response.payload
            && error.code.is_some()
        {
            return Err(refused(error.to_io().to_string()));
        }
    }
    Ok(())
}
