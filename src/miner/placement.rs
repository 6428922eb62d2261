//! On which host a job's executor runs. Pure: randomness is an argument.

use super::host::HostName;
use crate::base::rng::Rng;

/// How a host is chosen among those that can take a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
pub enum Strategy {
    /// One after the other
    RoundRobin,
    /// The one with the smallest part of its slots taken
    #[default]
    LeastLoaded,
    /// The less loaded of two that are drawn
    TwoRandom,
    /// The least loaded of those that have the job's image, if any has
    ImageLocal,
}

/// A host that can take the job: it is well, and has a free slot of the job's class.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate {
    /// Which.
    pub host: HostName,
    /// Its slots of all classes that are not free.
    pub taken: usize,
    /// Its slots of all classes.
    pub slots: usize,
    /// Whether it is known to have the job's image.
    pub has_image: bool,
}

impl Candidate {
    /// Whether a smaller part of its slots is taken.
    fn is_less_loaded(&self, than: &Self) -> bool {
        self.taken * than.slots < than.taken * self.slots
    }
}

/// Chooses hosts.
#[derive(Debug)]
pub struct Placement {
    strategy: Strategy,
    rng: Rng,
    last: Option<HostName>,
}

impl Placement {
    /// Nothing was chosen yet.
    pub fn new(strategy: Strategy, rng: Rng) -> Self {
        Self { strategy, rng, last: None }
    }

    /// The next choices are made by this strategy.
    pub fn set(&mut self, strategy: Strategy) {
        self.strategy = strategy;
    }

    /// One of the candidates, each of which is another host; `None` if there is none.
    ///
    /// Hosts that are equally good come in turn.
    pub fn choose(&mut self, mut candidates: Vec<Candidate>) -> Option<HostName> {
        candidates.sort_by_key(|candidate| candidate.host);
        // From the one after the last choice on, so that the first of equals is the next in turn.
        let turn = candidates.iter().position(|candidate| Some(candidate.host) > self.last).unwrap_or(0);
        candidates.rotate_left(turn);
        match self.strategy {
            Strategy::RoundRobin => candidates.truncate(1),
            Strategy::LeastLoaded => {}
            Strategy::TwoRandom => {
                let drawn = [self.draw(&mut candidates), self.draw(&mut candidates)];
                candidates = drawn.into_iter().flatten().collect();
            }
            Strategy::ImageLocal if candidates.iter().any(|candidate| candidate.has_image) => {
                candidates.retain(|candidate| candidate.has_image);
            }
            Strategy::ImageLocal => {}
        }
        let better = |best: Candidate, next: Candidate| if next.is_less_loaded(&best) { next } else { best };
        self.last = Some(candidates.into_iter().reduce(better)?.host);
        self.last
    }

    fn draw(&mut self, from: &mut Vec<Candidate>) -> Option<Candidate> {
        let count = u64::try_from(from.len()).ok().filter(|count| *count > 0)?;
        let at = usize::try_from(self.rng.next_u64() % count).ok()?;
        Some(from.swap_remove(at))
    }
}

/// An image's name as an engine lists it: without what stands for the default registry, with a tag.
pub fn listed_name(image: &str) -> String {
    let name = image.strip_prefix("docker.io/").or(image.strip_prefix("index.docker.io/")).unwrap_or(image);
    let name = name.strip_prefix("library/").unwrap_or(name);
    let last = name.rsplit('/').next().unwrap_or(name);
    match last.contains([':', '@']) {
        true => name.to_owned(),
        false => format!("{name}:latest"),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn name(text: &str) -> HostName {
        text.parse().unwrap()
    }

    fn host(text: &str, taken: usize, slots: usize) -> Candidate {
        Candidate { host: name(text), taken, slots, has_image: false }
    }

    fn placement(strategy: Strategy) -> Placement {
        Placement::new(strategy, Rng::new(7))
    }

    fn chosen(placement: &mut Placement, from: &[Candidate], times: usize) -> Vec<String> {
        (0..times).map(|_| placement.choose(from.to_vec()).unwrap().to_string()).collect()
    }

    #[test]
    fn round_robin_takes_one_after_the_other_whatever_their_load() {
        let mut placement = placement(Strategy::RoundRobin);
        let all = [host("b", 9, 10), host("a", 0, 1), host("c", 0, 1)];
        assert_eq!(chosen(&mut placement, &all, 4), ["a", "b", "c", "a"]);
        // One that is full or down is passed over, and does not lose its place.
        assert_eq!(chosen(&mut placement, &all[1..], 1), ["c"]);
        assert_eq!(chosen(&mut placement, &all, 2), ["a", "b"]);
        assert_eq!(placement.choose(vec![]), None);
    }

    #[test]
    fn least_loaded_compares_parts_and_equals_come_in_turn() {
        let mut placement = placement(Strategy::LeastLoaded);
        // 3 of 16 is less than 1 of 4.
        assert_eq!(chosen(&mut placement, &[host("a", 1, 4), host("b", 3, 16)], 3), ["b", "b", "b"]);
        assert_eq!(
            chosen(&mut placement, &[host("a", 1, 4), host("b", 4, 16), host("c", 1, 2)], 4),
            ["a", "b", "a", "b"]
        );
    }

    #[test]
    fn two_random_choices_spread_the_load_and_never_take_the_worst() {
        let mut placement = placement(Strategy::TwoRandom);
        let all = [host("a", 0, 4), host("b", 1, 4), host("c", 2, 4), host("d", 3, 4)];
        let mut times = BTreeMap::<String, usize>::new();
        for chosen in chosen(&mut placement, &all, 1200) {
            *times.entry(chosen).or_default() += 1;
        }
        // Of the six pairs three have a, two more have b, and one has c and d.
        assert!((500..700).contains(&times["a"]) && (320..480).contains(&times["b"]), "{times:?}");
        assert!((130..270).contains(&times["c"]) && !times.contains_key("d"), "{times:?}");
        assert_eq!(chosen(&mut placement, &all[3..], 1), ["d"], "one is enough");
    }

    #[test]
    fn an_image_that_is_there_goes_before_load_and_one_that_is_nowhere_does_not_matter() {
        let mut placement = placement(Strategy::ImageLocal);
        let there = |candidate| Candidate { has_image: true, ..candidate };
        let all = [host("a", 0, 4), there(host("b", 3, 4)), there(host("c", 2, 4))];
        assert_eq!(chosen(&mut placement, &all, 2), ["c", "c"]);
        assert_eq!(chosen(&mut placement, &[all[0], host("b", 3, 4)], 2), ["a", "a"]);
    }

    #[test]
    fn images_are_known_by_the_names_that_engines_list() {
        for (image, listed) in [
            ("busybox", "busybox:latest"),
            ("docker.io/library/busybox", "busybox:latest"),
            ("index.docker.io/acme/a:1", "acme/a:1"),
            ("localhost:5000/a", "localhost:5000/a:latest"),
            ("r.example/a@sha256:0", "r.example/a@sha256:0"),
        ] {
            assert_eq!(listed_name(image), listed);
        }
    }
}
