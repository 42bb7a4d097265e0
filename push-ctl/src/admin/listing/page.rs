//! Which records are on a page, of a million. They are looked at where they are, some at a time, and only of those
//! that can be on the page anything is kept.
//!
//! A few, spread over all of them, tell about where in the order the page begins and ends. Then each is looked at:
//! those before that and those behind it are counted, and what is in between is put in order. Should the few have
//! been wrong, all are looked at again, with more in between; the page is the same in any case.

use crate::controller::{Controller, Stopped, View};
use crate::sessions::records::{AppName, EndpointName, InstanceName, RealmName};
use std::cmp::Ordering;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long the controller looks before it is somebody else's turn.
const LOOK: Duration = Duration::from_millis(1);

/// So many are looked at before it is looked at the clock.
const BETWEEN_CLOCKS: usize = 64;

/// How many tell where a page begins and ends.
pub(super) const PROBES: usize = 4096;

/// How many of these a page is wider than it seems to be, on either side: about four standard deviations of where
/// the middle is among them; then far more; then there is no doubt left.
const MARGINS: [usize; 3] = [PROBES / 32, PROBES / 4, usize::MAX];

/// Which page is asked for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Page {
    pub(super) offset: usize,
    pub(super) limit: usize,
    pub(super) reverse: bool,
}

/// What is asked for, and in which order.
pub(super) trait Query: Send + Sync + 'static {
    /// What records are known by; those that are equal otherwise are in order of it.
    type Id: Copy + Ord + Send + Sync + 'static;

    /// How many places there are to look at.
    fn places(&self) -> usize;

    /// The record at a place, if it is asked for.
    fn look<'a>(&self, view: &View<'a>, place: usize) -> Option<(Key<'a>, Self::Id)>;
}

/// Whatever records are sorted by, where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Key<'a> {
    Number(u64),
    Endpoint(&'a EndpointName),
    Instance(&'a AppName, &'a InstanceName),
    Place(Option<&'a RealmName>, IpAddr),
}

/// The same, kept.
#[derive(Clone, Debug)]
enum KeptKey {
    Number(u64),
    Endpoint(EndpointName),
    Instance(AppName, InstanceName),
    Place(Option<RealmName>, IpAddr),
}

impl Key<'_> {
    fn kept(self) -> KeptKey {
        match self {
            Self::Number(number) => KeptKey::Number(number),
            Self::Endpoint(endpoint) => KeptKey::Endpoint(endpoint.clone()),
            Self::Instance(app, instance) => KeptKey::Instance(app.clone(), instance.clone()),
            Self::Place(realm, address) => KeptKey::Place(realm.cloned(), address),
        }
    }
}

impl KeptKey {
    const fn key(&self) -> Key<'_> {
        match self {
            Self::Number(number) => Key::Number(*number),
            Self::Endpoint(endpoint) => Key::Endpoint(endpoint),
            Self::Instance(app, instance) => Key::Instance(app, instance),
            Self::Place(realm, address) => Key::Place(realm.as_ref(), *address),
        }
    }
}

type Kept<I> = (KeptKey, I);

/// What is on a page, in order, and of how many; and how many records were looked at for it.
#[derive(Debug)]
pub(super) struct Found<I> {
    pub(super) total: usize,
    pub(super) ids: Vec<I>,
    #[cfg_attr(
        not(test),
        expect(dead_code, reason = "tests hold it against what there is")
    )]
    pub(super) looked_at: usize,
}

/// Finds the page.
///
/// # Errors
///
/// [`Stopped`].
pub(super) async fn find<Q: Query>(
    controller: &Controller,
    query: Q,
    page: Page,
) -> Result<Found<Q::Id>, Stopped> {
    let query = Arc::new(query);
    let places = query.places();
    let mut looked_at = 0;
    let probes = if places > 4 * PROBES {
        looked_at += PROBES;
        probe(controller, &query, page).await?
    } else {
        Vec::new()
    };
    for margin in MARGINS {
        let between = Arc::new(page.between(&probes, places, margin));
        let seen = look(controller, &query, page, between).await?;
        looked_at += places;
        let total = seen.before + seen.between.len() + seen.behind;
        let end = page.offset.saturating_add(page.limit).min(total);
        let start = page.offset.min(end);
        if start == end {
            let ids = Vec::new();
            return Ok(Found {
                total,
                ids,
                looked_at,
            });
        }
        let in_between = start
            .checked_sub(seen.before)
            .zip(end.checked_sub(seen.before));
        if let Some((start, end)) = in_between
            && end <= seen.between.len()
        {
            let ids = page.cut(seen.between, start, end);
            return Ok(Found {
                total,
                ids,
                looked_at,
            });
        }
    }
    unreachable!("with no bounds, all that there is is in between")
}

/// Puts some into order, from all over the place.
async fn probe<Q: Query>(
    controller: &Controller,
    query: &Arc<Q>,
    page: Page,
) -> Result<Vec<Kept<Q::Id>>, Stopped> {
    let places = query.places();
    let mut probes = Vec::new();
    let mut next = 0;
    while next < PROBES {
        let query = Arc::clone(query);
        let some = controller.observe(move |view| {
            let mut some = Vec::new();
            let end = look_for_a_while(next, PROBES, |n| {
                let found = query.look(&view, probed(n, places));
                some.extend(found.map(|(key, id)| (key.kept(), id)));
            });
            (end, some)
        });
        let (end, some) = some.await?;
        probes.extend(some);
        next = end;
    }
    probes.sort_unstable_by(|a, b| page.order_kept(a, b));
    Ok(probes)
}

/// The place that is looked at first as the `n`th one.
pub(super) fn probed(n: usize, places: usize) -> usize {
    // Multiples of the golden ratio are spread evenly, and have no rhythm that records may have, too.
    let spread = (n as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let place = (u128::from(spread) * places as u128) >> 64;
    usize::try_from(place).unwrap_or(0)
}

/// What is before the page, about; what is about on it; and what is behind.
struct Seen<I> {
    before: usize,
    between: Vec<Kept<I>>,
    behind: usize,
}

/// Looks at all there is.
async fn look<Q: Query>(
    controller: &Controller,
    query: &Arc<Q>,
    page: Page,
    between: Arc<[Option<Kept<Q::Id>>; 2]>,
) -> Result<Seen<Q::Id>, Stopped> {
    let places = query.places();
    let mut all = Seen {
        before: 0,
        between: Vec::new(),
        behind: 0,
    };
    let mut next = 0;
    while next < places {
        let (query, bounds) = (Arc::clone(query), Arc::clone(&between));
        let some = controller.observe(move |view| {
            let (mut before, mut between, mut behind) = (0, Vec::new(), 0);
            let [first, last] = &*bounds;
            let end = look_for_a_while(next, places, |place| {
                let Some(found) = query.look(&view, place) else {
                    return;
                };
                let is = |order, bound: &Option<Kept<Q::Id>>| {
                    let bound = bound.as_ref().map(|(key, id)| (key.key(), *id));
                    bound.is_some_and(|bound| page.order(&found, &bound) == order)
                };
                if is(Ordering::Less, first) {
                    before += 1;
                } else if is(Ordering::Greater, last) {
                    behind += 1;
                } else {
                    between.push((found.0.kept(), found.1));
                }
            });
            let some = Seen {
                before,
                between,
                behind,
            };
            (end, some)
        });
        let (end, some) = some.await?;
        all.before += some.before;
        all.between.extend(some.between);
        all.behind += some.behind;
        next = end;
    }
    Ok(all)
}

/// Calls `look` for each from `start` on, until it is somebody else's turn; gives the next one, or `end`.
pub(super) fn look_for_a_while(start: usize, end: usize, mut look: impl FnMut(usize)) -> usize {
    let begun = Instant::now();
    let mut next = start;
    while next < end {
        let stop = next.saturating_add(BETWEEN_CLOCKS).min(end);
        (next..stop).for_each(&mut look);
        next = stop;
        if begun.elapsed() >= LOOK {
            break;
        }
    }
    next
}

impl Page {
    fn order<I: Ord>(self, a: &(Key<'_>, I), b: &(Key<'_>, I)) -> Ordering {
        let order = a.cmp(b);
        if self.reverse { order.reverse() } else { order }
    }

    fn order_kept<I: Ord + Copy>(self, a: &Kept<I>, b: &Kept<I>) -> Ordering {
        self.order(&(a.0.key(), a.1), &(b.0.key(), b.1))
    }

    /// About the first and the last on the page, as some that are in order have it; none where it is open.
    fn between<I: Copy>(
        self,
        probes: &[Kept<I>],
        places: usize,
        margin: usize,
    ) -> [Option<Kept<I>>; 2] {
        let among_probes = |rank: usize| {
            let rank = rank as u128 * PROBES as u128 / places.max(1) as u128;
            usize::try_from(rank).unwrap_or(usize::MAX)
        };
        let first = among_probes(self.offset).checked_sub(margin);
        let first = first.map(|first| first.min(probes.len().saturating_sub(1)));
        let last = among_probes(self.offset.saturating_add(self.limit)).saturating_add(margin);
        [first, Some(last)].map(|bound| probes.get(bound?).cloned())
    }

    /// Of what is about on the page, that which is.
    fn cut<I: Copy + Ord>(self, mut kept: Vec<Kept<I>>, start: usize, end: usize) -> Vec<I> {
        // Not everything has to be in order for that.
        if end < kept.len() {
            kept.select_nth_unstable_by(end, |a, b| self.order_kept(a, b));
            kept.truncate(end);
        }
        if start > 0 && start < kept.len() {
            kept.select_nth_unstable_by(start, |a, b| self.order_kept(a, b));
        }
        let mut kept = kept.split_off(start);
        kept.sort_unstable_by(|a, b| self.order_kept(a, b));
        kept.into_iter().map(|(_, id)| id).collect()
    }
}
