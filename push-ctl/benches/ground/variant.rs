//! Push, but for one thing.

use super::plan::{INTERFACE, LEAST, Least};
use super::rig::{OBJECT, xdp};
use crate::gateway::{DEVICE_MAC, EXT, Gateway, INT, INT_MAC, TRIGGER_PORT, sources};
use anyhow::{Context, Result, anyhow};
use aya::maps::{Array, HashMap, Map, MapData};
use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::xdp::XdpLink;
use aya::programs::{TestRun as _, TestRunOptions, Xdp};
use aya::{Ebpf, EbpfLoader};
use nix::net::if_::if_nametoindex;
use push_common::maps::{NIC_CONFIG, NicConfig, PROGRAM, SESSIONS, SessionRecord};
use std::net::SocketAddr;
use std::time::Duration;

static BY_HASH: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/push-by-hash"));
static LADDER: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/push-ladder"));
static BY_ROUTE: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/push-by-route"));

/// The map that has the sessions instead of the array.
const HASH: &str = "push_by_hash";

/// As aya takes records: it knows only its own trait for plain data.
type RecordBytes = [u8; size_of::<SessionRecord>()];

/// What is done otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Otherwise {
    /// Sessions are in a hash map instead of an array.
    ByHash,
    /// The kernel's routes are asked for each packet.
    ByRoute,
    /// It ends before a step.
    EndsBefore(u32),
    /// Nothing is done but what has to be, for one kind of frame.
    Least,
    /// Nor is the tag looked at.
    LeastWithoutTag,
    /// The least, with sessions in a hash map.
    LeastByHash,
}

/// The step that it ends before, as the loader sets it.
const LADDER_STEP: &str = "LADDER_STEP";

/// The program with something done otherwise, on the maps of a gateway.
pub(crate) struct Variant {
    object: Ebpf,
    name: &'static str,
    /// Index of the NIC.
    interface: u32,
}

impl Variant {
    /// Takes over the first `count` sessions, if sessions are what is kept otherwise.
    pub(crate) fn new(gateway: &Gateway, otherwise: Otherwise, count: u32) -> Result<Self> {
        let pins = &gateway.settings.pin_dir;
        let config: [u8; size_of::<NicConfig>()] = bytemuck::must_cast(nic_config(gateway)?);
        let out = if_nametoindex(INT)?;
        let least = least(otherwise == Otherwise::LeastWithoutTag);
        let mut loader = EbpfLoader::new();
        let pinned = std::fs::read_dir(pins)?
            .map(|pin| {
                let name = pin?.file_name().into_string();
                name.map_err(|name| anyhow!("{} isn't one of push's pins", name.display()))
            })
            .collect::<Result<Vec<_>>>()?;
        for name in pinned.iter().filter(|name| name.starts_with("push_")) {
            loader.map_pin_path(name, pins.join(name));
        }
        let is_by_hash = matches!(otherwise, Otherwise::ByHash | Otherwise::LeastByHash);
        if is_by_hash {
            loader.map_max_entries(HASH, count.max(1));
        }
        let (bytes, name) = match otherwise {
            Otherwise::ByHash => (BY_HASH, PROGRAM),
            Otherwise::ByRoute => (BY_ROUTE, PROGRAM),
            Otherwise::EndsBefore(ref step) => {
                loader.override_global(LADDER_STEP, step, true);
                (LADDER, PROGRAM)
            }
            Otherwise::Least | Otherwise::LeastWithoutTag => (OBJECT, "least"),
            Otherwise::LeastByHash => (OBJECT, "least_by_hash"),
        };
        if name == PROGRAM {
            loader.override_global(NIC_CONFIG, &config, true);
        } else {
            loader.override_global(LEAST, &least, true);
            loader.override_global(INTERFACE, &out, true);
        }
        let mut object = loader.load(bytes)?;
        xdp(&mut object, name)?.load()?;
        if is_by_hash {
            let array = MapData::from_pin(pins.join(SESSIONS))?;
            let array: Array<_, RecordBytes> = Array::try_from(Map::Array(array))?;
            let hash = object.map_mut(HASH).context("no hash map")?;
            let mut hash: HashMap<_, u32, RecordBytes> = HashMap::try_from(hash)?;
            for slot in 1..=count {
                hash.insert(slot, array.get(&slot, 0)?, 0)?;
            }
        }
        Ok(Self {
            object,
            name,
            interface: if_nametoindex(EXT)?,
        })
    }

    /// Puts it in the place of push where triggers come in.
    pub(crate) fn attach(&mut self, gateway: &Gateway) -> Result<()> {
        let pin = gateway.settings.pin_dir.join(format!("link_{EXT}"));
        let link = XdpLink::try_from(FdLink::from(PinnedLink::from_pin(pin)?))?;
        xdp(&mut self.object, self.name)?.attach_to_link(link)?;
        Ok(())
    }

    pub(super) fn program(&self) -> Result<&Xdp> {
        let program = self.object.program(self.name);
        Ok(program.context("no program")?.try_into()?)
    }

    /// Runs it once on a frame, as [`push_ctl::dataplane::Prober::run`] does push.
    pub(crate) fn run(&self, frame: &[u8], out: &mut Vec<u8>) -> Result<(u32, Duration)> {
        let context = [0, u32::try_from(frame.len())?, 0, self.interface, 0, 0];
        out.resize(frame.len() + 256, 0);
        let result = self.program()?.test_run(TestRunOptions {
            data_in: Some(frame),
            data_out: Some(out),
            ctx_in: Some(bytemuck::bytes_of(&context)),
            ..TestRunOptions::new()
        })?;
        Ok((result.return_value, result.duration))
    }
}

/// What push is told of the NIC that triggers come in by.
pub(crate) fn nic_config(gateway: &Gateway) -> Result<NicConfig> {
    let nic = &gateway.settings.nics[0];
    Ok(NicConfig {
        trigger_port: gateway.settings.trigger_port.to_be_bytes(),
        takes: NicConfig::IPV4 | NicConfig::IPV6,
        ipv4: nic
            .ipv4
            .context("no address for triggers by IPv4")?
            .octets(),
        ipv6: nic
            .ipv6
            .context("no address for triggers by IPv6")?
            .octets(),
        ..NicConfig::default()
    })
}

/// What the least that does the job is told, for devices behind the other NIC.
fn least(skips_tag: bool) -> [u8; size_of::<Least>()] {
    let [SocketAddr::V4(source), _] = sources() else {
        unreachable!("the first one is of IPv4");
    };
    let macs = [DEVICE_MAC, INT_MAC].concat();
    let words = macs.as_chunks::<4>().0.iter();
    let mut words = words.map(|&word| u32::from_ne_bytes(word));
    bytemuck::must_cast(Least {
        macs: std::array::from_fn(|_| words.next().unwrap_or(0)),
        source: source.ip().octets(),
        source_port: source.port().to_be_bytes(),
        trigger_port: TRIGGER_PORT.to_be_bytes(),
        skips_tag: skips_tag.into(),
        reserved: 0,
    })
}
