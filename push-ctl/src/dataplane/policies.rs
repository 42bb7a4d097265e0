//! What applications may do, as the path enforces it.

use super::pins::pinned_map;
use super::table::on_the_wire;
use super::{Policy, Settings};
use anyhow::{Context, Result, ensure};
use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Array, Map, MapData};
use ipnet::IpNet;
use push_common::activity::MAX_WINDOW_TICKS;
use push_common::maps::{
    ALLOWED_SOURCES, MAX_POLICIES, MAX_SOURCE_PREFIXES, POLICIES, PolicyRecord, SourcePrefix,
    TICK_NS,
};
use push_common::rate;
use std::collections::{BTreeMap, BTreeSet};

/// The policy of sessions that are not restricted.
const OPEN_SLOT: u16 = 0;

type PolicyBytes = [u8; size_of::<PolicyRecord>()];
type PrefixBytes = [u8; size_of::<SourcePrefix>()];

/// The maps [`push_common::maps::POLICIES`] and [`push_common::maps::ALLOWED_SOURCES`].
pub(super) struct Policies {
    records: Array<MapData, PolicyBytes>,
    allowed: LpmTrie<MapData, PrefixBytes, u8>,
    /// What is in the trie, by policy.
    prefixes: BTreeMap<u16, BTreeSet<Prefix>>,
    /// Policies that were set since this was opened.
    set: BTreeSet<u16>,
}

/// Length in bits and data of a key of the trie.
type Prefix = (u32, PrefixBytes);

impl Policies {
    pub(super) fn open(settings: &Settings) -> Result<Self> {
        let pinned = |name: &str| pinned_map(&settings.pin_dir, name);
        let mut policies = Self {
            records: Array::try_from(Map::Array(pinned(POLICIES)?))?,
            allowed: LpmTrie::try_from(Map::LpmTrie(pinned(ALLOWED_SOURCES)?))?,
            prefixes: BTreeMap::new(),
            set: BTreeSet::new(),
        };
        for key in policies.allowed.keys() {
            let key = key.context("cannot read the prefixes that triggers may come from")?;
            let data = key.data();
            let prefix: SourcePrefix = bytemuck::pod_read_unaligned(&data);
            let policy = u16::from_be_bytes(prefix.policy);
            let of_policy = policies.prefixes.entry(policy).or_default();
            of_policy.insert((key.prefix_len(), data));
        }
        policies.write(OPEN_SLOT, &PolicyRecord::OPEN)?;
        Ok(policies)
    }

    /// Enforces `policy` for the sessions that refer to this slot. At no moment is anything permitted
    /// that neither the policy before nor this one permits.
    pub(super) fn set(&mut self, slot: u16, policy: &Policy) -> Result<()> {
        ensure!(
            slot != OPEN_SLOT && u32::from(slot) < MAX_POLICIES,
            "there is no slot {slot} for a policy; slots 1 to {} are for applications",
            MAX_POLICIES - 1
        );
        let wanted: BTreeSet<_> = policy.sources.iter().map(|net| prefix(slot, net)).collect();
        let present = self.prefixes.entry(slot).or_default().clone();
        // New prefixes first: without them, what is permitted would be refused for a moment.
        for &(bits, data) in wanted.difference(&present) {
            self.allowed
                .insert(&Key::new(bits, data), 0, 0)
                .with_context(|| {
                    format!(
                        "cannot store the prefixes that triggers may come from (there is room for {MAX_SOURCE_PREFIXES} of all applications)"
                    )
                })?;
            self.prefixes.entry(slot).or_default().insert((bits, data));
        }
        self.write(slot, &record(policy))?;
        self.set.insert(slot);
        for prefix in present.difference(&wanted) {
            self.take(slot, prefix)?;
        }
        Ok(())
    }

    /// Removes what a process before this one has left of applications that are gone.
    pub(super) fn settled(&mut self) -> Result<()> {
        let present: BTreeSet<_> = self.prefixes.keys().copied().collect();
        let left: Vec<_> = present.difference(&self.set).copied().collect();
        for slot in left {
            self.remove(slot)?;
        }
        Ok(())
    }

    /// Permits nothing any more to sessions that still refer to this slot.
    pub(super) fn remove(&mut self, slot: u16) -> Result<()> {
        self.write(slot, &bytemuck::Zeroable::zeroed())?;
        for prefix in self.prefixes.remove(&slot).unwrap_or_default() {
            self.take(slot, &prefix)?;
        }
        Ok(())
    }

    /// What the path enforces for sessions that refer to this slot.
    pub(super) fn seen(&self, slot: u16) -> Result<PolicyRecord> {
        let bytes = self.records.get(&u32::from(slot), 0);
        let bytes = bytes.context("cannot read the map of policies")?;
        Ok(bytemuck::pod_read_unaligned(&bytes))
    }

    fn take(&mut self, slot: u16, prefix: &Prefix) -> Result<()> {
        let &(bits, data) = prefix;
        self.allowed
            .remove(&Key::new(bits, data))
            .context("cannot remove a prefix that triggers may come from")?;
        if let Some(of_policy) = self.prefixes.get_mut(&slot) {
            of_policy.remove(prefix);
        }
        Ok(())
    }

    fn write(&mut self, slot: u16, record: &PolicyRecord) -> Result<()> {
        let bytes: PolicyBytes = bytemuck::must_cast(*record);
        self.records
            .set(u32::from(slot), bytes, 0)
            .context("cannot write the map of policies")
    }
}

fn record(policy: &Policy) -> PolicyRecord {
    let (interval_ns, tolerance_ns) = policy.rate.map_or((0, 0), |rate| {
        let interval_ns = u64::try_from(rate.interval.as_nanos()).unwrap_or(u64::MAX);
        (interval_ns, rate::tolerance_ns(interval_ns, rate.burst))
    });
    let window_ticks = policy.coalescing_window.map_or(0, |window| {
        let ticks = window.as_nanos().div_ceil(u128::from(TICK_NS));
        u32::try_from(ticks)
            .unwrap_or(u32::MAX)
            .min(MAX_WINDOW_TICKS)
    });
    let flag = |condition, flag| if condition { flag } else { 0 };
    PolicyRecord {
        interval_ns,
        tolerance_ns,
        window_ticks,
        max_payload: policy.max_payload.unwrap_or(u16::MAX),
        dscp: policy.dscp.unwrap_or(PolicyRecord::KEEP_DSCP),
        flags: flag(!policy.sources.is_empty(), PolicyRecord::SOURCES)
            | flag(policy.return_acks, PolicyRecord::RETURN_ACKS),
    }
}

/// The key of a prefix.
fn prefix(slot: u16, net: &IpNet) -> Prefix {
    let net = net.trunc();
    let (address, is_v6) = on_the_wire(net.addr());
    let data = SourcePrefix::of(slot, is_v6, address);
    let bits = SourcePrefix::BITS_BEFORE + u32::from(net.prefix_len());
    (bits, bytemuck::must_cast(data))
}
