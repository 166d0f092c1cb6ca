//! `bandwidth`: a token bucket for each direction, as upstream's plugin makes them.
//!
//! What goes to the pod leaves the host through its port, which has the bucket. What comes from the pod can only be delayed where it
//! leaves an interface too, so it is sent through one of its own (ifb) first.

use berth_cni::{Bandwidth, Error, code};
use futures_util::StreamExt;
use netlink_packet_core::{
    DefaultNla, NLM_F_ACK, NLM_F_CREATE, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::{
    RouteNetlinkMessage,
    tc::{TcAttribute, TcHandle, TcMessage, TcOption},
};
use rtnetlink::{Handle, LinkIfb};

use crate::link;

/// How long a packet waits in a bucket before it is dropped.
const LATENCY_MS: u64 = 25;
const TCA_TBF_PARMS: u16 = 1;
const TCA_TBF_RATE64: u16 = 4;
const TCA_TBF_BURST: u16 = 6;
const TC_LINKLAYER_ETHERNET: u8 = 1;
/// All protocols, in network order.
const ETH_P_ALL: u16 = 0x0003_u16.to_be();
const INGRESS: u32 = 0xffff_0000;

/// Limits the pod behind `port`, with `ifb` as the name of the interface for its own sending.
pub(crate) async fn add(handle: &Handle, port: (&str, u32), ifb: &str, limits: &Bandwidth) -> Result<(), Error> {
    let (name, index) = port;
    if limits.ingress_rate > 0 {
        bucket(handle, index, limits.ingress_rate, limits.ingress_burst).await?;
    }
    if limits.egress_rate > 0 {
        // Left by an ADD that was cut short.
        link::delete(handle, ifb).await?;
        let made = handle.link().add(LinkIfb::new(ifb).up().build()).execute().await;
        made.map_err(|error| link::failed("make", ifb, &error))?;
        let way = link::find(handle, ifb).await?.ok_or_else(|| Error::new(code::KERNEL, format!("{ifb} vanished")))?;
        bucket(handle, way.index, limits.egress_rate, limits.egress_burst).await?;
        let ingress = handle.qdisc().add(index as i32).ingress().execute().await;
        ingress.map_err(|error| link::failed("limit", name, &error))?;
        let filter = handle.traffic_filter(index as i32).add().parent(INGRESS).protocol(ETH_P_ALL).redirect(way.index);
        let filter = filter.map_err(|error| link::failed("limit", name, &error))?;
        filter.execute().await.map_err(|error| link::failed("limit", name, &error))?;
    }
    Ok(())
}

/// A token bucket filter (tc-tbf(8)) as what `index` sends through; rates in bits.
async fn bucket(handle: &Handle, index: u32, rate: u64, burst: u64) -> Result<(), Error> {
    let (rate, burst) = (rate / 8, (burst / 8) as u32);
    let limit = (rate * LATENCY_MS / 1000 + u64::from(burst)).min(u64::from(u32::MAX)) as u32;
    // struct tc_tbf_qopt: two struct tc_ratespec, the limit, and what newer attributes say better.
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
    let failed = |what: String| Error::new(code::KERNEL, format!("limit the bandwidth: {what}"));
    let mut answers = handle.clone().request(request).map_err(|error| failed(error.to_string()))?;
    while let Some(answer) = answers.next().await {
        if let NetlinkPayload::Error(error) = answer.payload
            && error.code.is_some()
        {
            return Err(failed(error.to_io().to_string()));
        }
    }
    Ok(())
}
