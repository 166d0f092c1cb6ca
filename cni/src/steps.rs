//! The steps of ADD and DEL, and of networks that come and go. Between two of them the disk or the
//! kernel differs, so a plugin that is killed leaves one state for each. With the feature `faults`,
//! tests kill, stop, delay or fail it there; without, all of this compiles to nothing.

use berth_cni::Error;

/// Declares the steps with their names.
macro_rules! steps {
    ($($step:ident = $name:literal,)*) => {
        /// What is about to be done.
        #[derive(Clone, Copy, Debug)]
        pub(crate) enum At {
            $($step),*
        }

        #[cfg(feature = "faults")]
        impl At {
            const ALL: &[Self] = &[$(Self::$step),*];

            fn name(self) -> &'static str {
                match self {
                    $(Self::$step => $name),*
                }
            }
        }
    };
}

steps! {
    AddLease = "add.lease",
    AddAddress = "add.address",
    AddBridge = "add.bridge",
    AddGateway = "add.gateway",
    AddLink = "add.link",
    AddPort = "add.port",
    AddConfigure = "add.configure",
    AddMasquerade = "add.masquerade",
    AddPorts = "add.ports",
    AddBandwidth = "add.bandwidth",
    AddResult = "add.result",
    DelPorts = "del.ports",
    DelLink = "del.link",
    DelAddress = "del.address",
    LeadRoute = "lead.route",
    LeadPorts = "lead.ports",
    YieldPorts = "yield.ports",
    YieldRoute = "yield.route",
    UpBridge = "up.bridge",
    UpGateway = "up.gateway",
    DownBridge = "down.bridge",
    DownRules = "down.rules",
    DownAddresses = "down.addresses",
}

/// To be called before each step.
///
/// # Errors
/// Only in tests, which let the step fail.
#[cfg(not(feature = "faults"))]
pub(crate) fn begin(_: At) -> Result<(), Error> {
    Ok(())
}

#[cfg(feature = "faults")]
pub(crate) fn begin(step: At) -> Result<(), Error> {
    berth_faults::strike(step.name())
        .map_err(|error| Error::new(berth_cni::code::IO, error.to_string()))
}

/// Lets a test ask for faults from here on, if it has said where.
#[cfg(feature = "faults")]
pub(crate) fn allow_faults() {
    berth_faults::start(At::ALL.iter().map(|step| step.name().to_owned()));
}
