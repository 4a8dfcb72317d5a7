//! A graph of neighbours over some rows, never changed once it is made, and the walk through it.
//!
//! A row's node has the row's codes and up to [`LINKS`] nodes whose rows are near. A walk compares the entries, which are few
//! and spread over the rows, and goes on from the nearest; it keeps the `breadth` nearest that it met, and ends when the links
//! of all of them are followed. The nodes stand in the order in which a walk would meet them, so that neighbours share pages.
//!
//! Nodes of rows that are gone stay, to be walked through: what comes of them is looked up by place, and seen to be gone.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::super::kernel::{BLOCK_ROWS, Kernel};
use super::super::lines::Lines;

/// The most links of a node.
pub(in super::super) const LINKS: usize = 32;
/// What stands where a node has no more links.
pub(super) const NO_LINK: u32 = u32::MAX;
/// Entries that a walk goes on from.
const STARTS: usize = 4;
/// The most nodes of a segment: a walk's notes have 31 bits for one.
pub(super) const NODES_MAX: usize = (1 << 31) - 1;

/// The parts of a segment. `nodes` is how many rows there are; a row's number is its node's.
pub(super) struct Parts {
    /// `nodes` rows of codes.
    pub(super) codes: Lines<i8>,
    /// What a code of one stands for in each.
    pub(super) scales: Vec<f32>,
    /// [`LINKS`] a node, [`NO_LINK`] after the last.
    pub(super) links: Vec<u32>,
    /// Where the rows are.
    pub(super) places: Vec<u32>,
}

/// A sealed graph.
pub(super) struct Segment {
    parts: Parts,
    stride: usize,
    entries: Vec<u32>,
    dead: AtomicUsize,
    pub(super) breadths: Breadths,
}

/// How broad walks have to be for the recall that is wanted: for 10 hits, and for [`Breadths::K_MAX`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Breadths {
    pub(super) few: u32,
    pub(super) many: u32,
}

impl Breadths {
    pub(super) const K_FEW: usize = 10;
    /// The most hits a walk is made for.
    pub(super) const K_MAX: usize = 100;

    /// For `k` hits: in between as the two are apart.
    pub(super) fn of(self, k: usize) -> usize {
        let (few, many) = (self.few as usize, self.many as usize);
        let above = k.clamp(Self::K_FEW, Self::K_MAX) - Self::K_FEW;
        few + many.saturating_sub(few) * above / (Self::K_MAX - Self::K_FEW)
    }
}

/// A node met on a walk: how near it is, in an order that integers have, and whether its links were followed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Met(u64);

impl Met {
    fn new(similarity: f32, node: u32) -> Self {
        let bits = similarity.to_bits();
        let ordered = if bits >> 31 == 0 { bits | 1 << 31 } else { !bits };
        Self(u64::from(ordered) << 32 | u64::from(node) << 1)
    }

    fn node(self) -> u32 {
        (self.0 as u32) >> 1
    }

    fn similarity(self) -> f32 {
        let ordered = (self.0 >> 32) as u32;
        f32::from_bits(if ordered >> 31 == 1 { ordered & !(1 << 31) } else { !ordered })
    }

    fn is_followed(self) -> bool {
        self.0 & 1 == 1
    }

    fn follow(&mut self) {
        self.0 |= 1;
    }
}

/// What a walk notes down; kept for the next.
#[derive(Default)]
pub(super) struct Notes {
    /// One bit a node.
    seen: Vec<u64>,
    /// The nearest, best first.
    nearest: Vec<Met>,
    /// Nodes that were compared.
    pub(super) compared: usize,
}

impl Notes {
    /// Whether the node is met for the first time.
    #[inline]
    fn meet(&mut self, node: u32) -> bool {
        let (word, bit) = (node as usize / 64, 1u64 << (node % 64));
        let is_new = self.seen[word] & bit == 0;
        self.seen[word] |= bit;
        is_new
    }

    /// Takes a node in if it is one of the `breadth` nearest. Returns where it stands.
    #[inline]
    fn take(&mut self, met: Met, breadth: usize) -> Option<usize> {
        if self.nearest.len() == breadth {
            if self.nearest.last().is_some_and(|last| *last >= met) {
                return None;
            }
            self.nearest.pop();
        }
        let at = self.nearest.partition_point(|other| *other > met);
        self.nearest.insert(at, met);
        Some(at)
    }
}

impl Segment {
    pub(super) fn new(parts: Parts, stride: usize, breadths: Breadths) -> Self {
        let nodes = parts.places.len();
        let entries = nodes.isqrt().max(1);
        let entries = (0..entries).map(|at| (at * nodes / entries) as u32).collect();
        Self { parts, stride, entries, dead: AtomicUsize::new(0), breadths }
    }

    pub(super) fn nodes(&self) -> usize {
        self.parts.places.len()
    }

    pub(super) fn parts(&self) -> &Parts {
        &self.parts
    }

    fn codes(&self, node: u32) -> &[i8] {
        &self.parts.codes.as_slice()[node as usize * self.stride..][..self.stride]
    }

    /// Where a node's row is, its codes, and what one of them stands for.
    pub(super) fn row(&self, node: u32) -> (u32, &[i8], f32) {
        (self.parts.places[node as usize], self.codes(node), self.parts.scales[node as usize])
    }

    /// How many rows are gone.
    pub(super) fn dead(&self) -> usize {
        self.dead.load(Ordering::Relaxed)
    }

    pub(super) fn bury(&self, count: usize) {
        self.dead.fetch_add(count, Ordering::Relaxed);
    }

    /// Bytes of memory.
    pub(super) fn memory_bytes(&self) -> usize {
        self.nodes() * (self.stride + LINKS * size_of::<u32>() + size_of::<f32>() + size_of::<u32>())
            + self.entries.len() * size_of::<u32>()
    }

    /// The nearest that a walk of this breadth meets, best first: similarity to a query of these codes, up to a factor, and
    /// place.
    pub(super) fn walk(
        &self,
        kernel: &Kernel,
        query: &[i16],
        breadth: usize,
        notes: &mut Notes,
    ) -> impl Iterator<Item = (f32, u32)> {
        notes.seen.clear();
        notes.seen.resize(self.nodes().div_ceil(64), 0);
        notes.nearest.clear();
        notes.compared = 0;
        self.compare(kernel, query, &self.entries, STARTS.min(breadth), notes);
        for start in 0..notes.nearest.len() {
            notes.meet(notes.nearest[start].node());
        }
        let mut next = 0;
        let mut fresh = [0; LINKS];
        while let Some(met) = notes.nearest.get_mut(next) {
            if met.is_followed() {
                next += 1;
                continue;
            }
            met.follow();
            let links = &self.parts.links[met.node() as usize * LINKS..][..LINKS];
            let mut count = 0;
            for &link in links.iter().take_while(|&&link| link != NO_LINK) {
                fresh[count] = link;
                count += usize::from(notes.meet(link));
            }
            let nearest = self.compare(kernel, query, &fresh[..count], breadth, notes);
            next = nearest.map_or(next + 1, |nearest| nearest.min(next + 1));
        }
        notes.nearest.iter().map(|met| (met.similarity(), self.parts.places[met.node() as usize]))
    }

    /// Compares nodes with the query and takes in the nearest. Returns where the first of them stands, if any was.
    fn compare(
        &self,
        kernel: &Kernel,
        query: &[i16],
        nodes: &[u32],
        breadth: usize,
        notes: &mut Notes,
    ) -> Option<usize> {
        let mut products = [0; BLOCK_ROWS];
        let mut first = None;
        notes.compared += nodes.len();
        for nodes in nodes.chunks(BLOCK_ROWS) {
            self.similarities(kernel, query, nodes, &mut products, |node, similarity| {
                if let Some(at) = notes.take(Met::new(similarity, node), breadth) {
                    first = Some(first.map_or(at, |first: usize| first.min(at)));
                }
            });
        }
        first
    }

    /// Shows how similar each of at most [`BLOCK_ROWS`] nodes is, up to a factor.
    #[inline]
    pub(super) fn similarities(
        &self,
        kernel: &Kernel,
        query: &[i16],
        nodes: &[u32],
        products: &mut [i32; BLOCK_ROWS],
        mut show: impl FnMut(u32, f32),
    ) {
        kernel.gather(self.parts.codes.as_slice(), nodes, query, products);
        for (&node, &product) in nodes.iter().zip(&*products) {
            show(node, product as f32 * self.parts.scales[node as usize]);
        }
    }

    /// A row as its codes have it.
    pub(super) fn decoded(&self, node: u32, dims: usize) -> Vec<f32> {
        let scale = self.parts.scales[node as usize];
        self.codes(node)[..dims].iter().map(|&code| f32::from(code) * scale).collect()
    }
}
