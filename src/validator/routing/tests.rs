use super::*;
use crate::base::rng::Rng;

const CLASS: ExecutorClass = ExecutorClass::AlwaysOnTest;

const TRUSTED: u8 = 9;

/// A job of an untrusted miner, where every miner answers.
const ASK: Ask<'static> = Ask { class: CLASS, trusted: false, tried: &[], is_open: &|_| false };

fn key(n: u8) -> PublicKey {
    PublicKey::from_bytes([n; 32])
}

fn miner(n: u8) -> MinerAddress {
    MinerAddress { hotkey: key(n), address: "127.0.0.1".into(), port: 1, trusted: n == TRUSTED, tls: false }
}

fn table(n: u8) -> Routing {
    Routing::new((1..=n).map(miner).collect(), HALF_LIFE)
}

fn has(count: i64) -> HashMap<ExecutorClass, i64> {
    HashMap::from([(CLASS, count)])
}

fn pick(routing: &mut Routing, tried: &[PublicKey], now: Instant) -> Result<PublicKey, NoMiner> {
    routing.reserve(&Ask { tried, ..ASK }, now).map(|m| m.hotkey)
}

#[test]
fn the_miner_with_fewest_jobs_comes_first_and_each_fills_up() {
    let (mut routing, now) = (table(2), Instant::now());
    routing.manifest(&key(1), has(1), now);
    routing.manifest(&key(2), has(3), now);
    let picks: Vec<_> = (0..4).map(|_| pick(&mut routing, &[], now).unwrap()).collect();
    assert_eq!(picks, [key(1), key(2), key(2), key(2)]);
    assert_eq!(pick(&mut routing, &[], now), Err(NoMiner::Busy));
    routing.release(&key(1), CLASS);
    assert_eq!(pick(&mut routing, &[], now), Ok(key(1)));
}

/// How many of so many jobs each of the miners gets, if each job ends before the next comes, or none does.
fn shares(routing: &mut Routing, miners: &[u8], jobs: usize, ends: bool, now: Instant) -> Vec<usize> {
    let picks: Vec<_> = (0..jobs)
        .map(|_| {
            let hotkey = pick(routing, &[], now).unwrap();
            if ends {
                routing.release(&hotkey, CLASS);
            }
            hotkey
        })
        .collect();
    miners.iter().map(|n| picks.iter().filter(|hotkey| **hotkey == key(*n)).count()).collect()
}

#[test]
fn a_miner_that_claims_to_have_much_gets_no_more_than_the_others() {
    for ends in [true, false] {
        let (mut routing, now) = (table(4), Instant::now());
        routing.manifest(&key(1), has(10_000), now);
        [2, 3, 4].into_iter().for_each(|n| routing.manifest(&key(n), has(5), now));
        assert_eq!(shares(&mut routing, &[1, 2, 3, 4], 20, ends, now), [5, 5, 5, 5], "ends: {ends}");
    }
}

#[test]
fn equals_take_turns_whoever_stands_between_them_in_the_table() {
    for ends in [true, false] {
        let (mut routing, now) = (table(8), Instant::now());
        (1..=8).for_each(|n| routing.manifest(&key(n), has(20), now));
        (2..=7).for_each(|n| routing.incident(&key(n), Incident::Failed, "it gave the job up", now));
        assert_eq!(shares(&mut routing, &[1, 8], 18, ends, now), [9, 9], "ends: {ends}");
    }
}

#[test]
fn an_unknown_miner_is_asked_when_the_known_ones_are_full() {
    let (mut routing, now) = (table(2), Instant::now());
    routing.manifest(&key(1), has(1), now);
    assert_eq!(pick(&mut routing, &[], now), Ok(key(1)));
    assert_eq!(pick(&mut routing, &[], now), Ok(key(2)));
}

#[test]
fn an_unknown_miner_is_asked_before_one_that_fails_its_jobs() {
    let (mut routing, now) = (table(2), Instant::now());
    routing.manifest(&key(1), has(10_000), now);
    routing.incident(&key(1), Incident::Failed, "it gave the job up", now);
    assert_eq!(pick(&mut routing, &[], now), Ok(key(2)));
}

#[test]
fn a_class_that_nobody_has_is_no_miner_not_busy() {
    let (mut routing, now) = (table(1), Instant::now());
    routing.manifest(&key(1), has(0), now);
    assert_eq!(pick(&mut routing, &[], now), Err(NoMiner::None));
    assert_eq!(pick(&mut table(0), &[], now), Err(NoMiner::None));
    // It may have some again, so it is asked after a while.
    assert_eq!(pick(&mut routing, &[], now + COOL_DOWN), Ok(key(1)));
}

#[test]
fn tried_and_blacklisted_miners_are_left_out() {
    let (mut routing, now) = (table(2), Instant::now());
    assert_eq!(pick(&mut routing, &[key(1)], now), Ok(key(2)));
    routing.blacklist(&key(2), now, Duration::from_secs(60));
    routing.blacklist(&key(2), now + Duration::from_secs(30), Duration::from_secs(60));
    assert_eq!(pick(&mut routing, &[key(1)], now + Duration::from_secs(59)), Err(NoMiner::None));
    assert_eq!(pick(&mut routing, &[key(1)], now + Duration::from_secs(60)), Ok(key(2)));
}

#[test]
fn a_trusted_miner_gets_the_jobs_that_ask_for_one_and_no_others() {
    let now = Instant::now();
    let reserve = |routing: &mut Routing, trusted| routing.reserve(&Ask { trusted, ..ASK }, now).map(|m| m.hotkey);
    let mut routing = Routing::new(vec![miner(TRUSTED)], HALF_LIFE);
    assert_eq!(reserve(&mut routing, false), Err(NoMiner::None));
    assert_eq!(reserve(&mut routing, true), Ok(key(TRUSTED)));
    routing.manifest(&key(TRUSTED), has(1), now);
    assert_eq!(reserve(&mut routing, true), Err(NoMiner::Busy));
    routing.manifest(&key(TRUSTED), has(2), now);
    routing.blacklist(&key(TRUSTED), now, Duration::from_secs(60));
    assert_eq!(reserve(&mut routing, true), Ok(key(TRUSTED)), "a report of cheating does not reach it");
    assert_eq!(reserve(&mut table(2), true), Err(NoMiner::NoTrusted));
}

#[test]
fn another_table_keeps_what_is_known_of_the_miners_in_both() {
    let now = Instant::now();
    let mut routing = table(2);
    routing.blacklist(&miner(1).hotkey, now, Duration::from_secs(60));
    routing.replace(vec![MinerAddress { port: 9, ..miner(1) }, miner(3)], now);
    assert_eq!(pick(&mut routing, &[], now), Ok(key(3)));
    assert_eq!(pick(&mut routing, &[key(3)], now), Err(NoMiner::None), "1 cheated, 2 is gone");
    let later = now + Duration::from_secs(61);
    assert_eq!(routing.reserve(&Ask { tried: &[key(3)], ..ASK }, later).map(|m| m.port), Ok(9));
}

#[test]
fn a_miner_that_is_missing_in_one_table_comes_back_with_what_still_counts() {
    let now = Instant::now();
    let mut routing = table(4);
    routing.manifest(&key(1), has(1), now);
    assert_eq!(pick(&mut routing, &[key(2), key(3), key(4)], now), Ok(key(1)));
    routing.blacklist(&key(2), now, Duration::from_secs(60));
    routing.incident(&key(3), Incident::Failed, "it gave the job up", now);
    let all = || (1..=6).map(miner).collect::<Vec<_>>();
    routing.replace(vec![miner(5)], now);
    assert_eq!(routing.gone.len(), 3, "nothing counts of the fourth");
    assert_eq!(pick(&mut routing, &[key(5)], now), Err(NoMiner::None), "none that is gone is asked");
    assert_eq!(routing.reserve_again(&key(1), CLASS), None);
    // What happens meanwhile counts as well: the sixth was never in a table.
    routing.blacklist(&key(6), now, Duration::from_secs(60));
    routing.incident(&key(3), Incident::Failed, "it lost its executor", now);
    routing.replace(vec![miner(5)], now);
    routing.replace(all(), now);
    let view = |routing: &Routing, n, at| routing.explain(&key(n), &|_| None, at).unwrap().miner;
    assert_eq!(view(&routing, 1, now).running, [(CLASS.as_str(), 1)].into());
    assert_eq!(view(&routing, 1, now).manifest, Some([(CLASS.as_str(), 1)].into()));
    for n in [2, 6] {
        assert_eq!(view(&routing, n, now).blacklisted_seconds, Some(60));
        assert_eq!((view(&routing, n, now).address.as_str(), view(&routing, n, now).port), ("127.0.0.1", 1));
    }
    assert_eq!(view(&routing, 3, now).numbers.incidents, 2.0 * Incident::Failed.weight());
    // Its job ends while it is gone again.
    routing.replace(vec![miner(5)], now);
    routing.release(&key(1), CLASS);
    routing.replace(all(), now);
    assert!(view(&routing, 1, now).running.is_empty());
    // When nothing counts any more, nothing is kept.
    let later = now + HALF_LIFE * 8;
    routing.replace(vec![miner(5)], later);
    assert!(routing.gone.is_empty(), "{:?}", routing.gone);
}

#[test]
fn of_more_miners_that_are_gone_than_are_remembered_those_that_matter_least_are_forgotten() {
    let now = Instant::now();
    let many = |n: u16| {
        let mut bytes = [7; 32];
        bytes[..2].copy_from_slice(&n.to_le_bytes());
        PublicKey::from_bytes(bytes)
    };
    let count = u16::try_from(GONE_MINERS).unwrap() + 50;
    let mut routing =
        Routing::new((0..count).map(|n| MinerAddress { hotkey: many(n), ..miner(1) }).collect(), HALF_LIFE);
    (0..count).for_each(|n| routing.incident(&many(n), Incident::Failed, "", now));
    let worst = [3, 2000, count - 1];
    worst.iter().for_each(|n| routing.blacklist(&many(*n), now, Duration::from_secs(60)));
    routing.replace(Vec::new(), now);
    assert_eq!(routing.gone.len(), GONE_MINERS);
    assert!(worst.iter().all(|n| routing.gone.contains_key(&many(*n))));
    // One more is not taken in, so that reports of cheating cannot fill the memory.
    routing.blacklist(&key(9), now, Duration::from_secs(60));
    assert_eq!(routing.gone.len(), GONE_MINERS);
}

#[test]
fn a_cooling_miner_is_the_last_choice_but_a_choice() {
    let (mut routing, now) = (table(2), Instant::now());
    routing.manifest(&key(1), has(9), now);
    routing.cool_down(&key(1), now);
    assert_eq!(pick(&mut routing, &[], now), Ok(key(2)));
    assert_eq!(pick(&mut routing, &[key(2)], now), Ok(key(1)));
}

#[test]
fn the_dependable_miner_comes_before_the_one_with_fewer_jobs() {
    let (mut routing, now) = (table(2), Instant::now());
    routing.manifest(&key(1), has(1_000_000), now);
    routing.manifest(&key(2), has(2), now);
    assert_eq!(pick(&mut routing, &[], now), Ok(key(1)));
    routing.incident(&key(1), Incident::Failed, "it gave the job up", now);
    let picks: Vec<_> = (0..3).map(|_| pick(&mut routing, &[], now).unwrap()).collect();
    assert_eq!(picks, [key(2), key(2), key(1)], "what it claims does not help it, and it is not left out");
    let later = now + HALF_LIFE * 8;
    [1, 2].into_iter().for_each(|n| routing.manifest(&key(n), has(9), later));
    routing.release(&key(1), CLASS);
    routing.release(&key(1), CLASS);
    assert_eq!(pick(&mut routing, &[], later), Ok(key(1)), "forgiven, and it runs fewer jobs");
}

#[test]
fn the_last_good_manifest_is_kept_and_counts_less_the_older_it_is() {
    let (mut routing, now) = (table(2), Instant::now());
    routing.manifest(&key(1), has(4), now);
    routing.cool_down(&key(1), now);
    let aged = now + Duration::from_secs(3600);
    routing.manifest(&key(2), has(2), aged);
    assert_eq!(pick(&mut routing, &[], aged), Ok(key(2)));
    assert_eq!(pick(&mut routing, &[], aged), Ok(key(1)));
    let shown = &routing.miners(&|_| None, aged)[0];
    assert_eq!((shown.manifest_age_seconds, shown.manifest.as_ref().unwrap()[CLASS.as_str()]), (Some(3600), 4));
    // Long after it is as unknown as if it had never come: whoever is known is asked first, full or not.
    let old = now + Duration::from_secs(5 * 3600);
    routing.manifest(&key(2), has(2), old);
    assert_eq!(pick(&mut routing, &[], old), Ok(key(2)));
}

#[test]
fn a_miner_whose_breaker_is_open_is_the_last_choice_but_a_choice() {
    let (mut routing, now) = (table(3), Instant::now());
    [1, 2].into_iter().for_each(|n| routing.manifest(&key(n), has(9), now));
    let is_open = |hotkey: &PublicKey| *hotkey != key(3);
    let pick = |routing: &mut Routing, tried: &[PublicKey]| {
        routing.reserve(&Ask { is_open: &is_open, tried, ..ASK }, now).map(|m| m.hotkey)
    };
    assert_eq!(pick(&mut routing, &[]), Ok(key(3)), "its manifest is not known, but it answers");
    assert!(pick(&mut routing, &[key(3)]).is_ok(), "a fault of our own is to leave no job without a miner");
}

#[test]
fn a_miner_explains_why_it_is_not_the_first() {
    let now = Instant::now();
    let open = |hotkey: &PublicKey| {
        let is_open = *hotkey == key(6);
        (*hotkey == key(6)).then(|| BreakerView { is_open, line: "open for 3.0s".to_owned() })
    };
    let mut routing = Routing::new((1..=7).chain([TRUSTED]).map(miner).collect(), HALF_LIFE);
    [1, 2, 3, 4, 5, 6].into_iter().for_each(|n| routing.manifest(&key(n), has(i64::from(4 + n)), now));
    routing.manifest(&key(2), has(0), now);
    routing.manifest(&key(3), has(20), now);
    routing.incident(&key(3), Incident::TimedOut, "waiting for the end", now);
    routing.blacklist(&key(4), now, Duration::from_secs(60));
    routing.cool_down(&key(5), now);
    let explain = |routing: &Routing, n| {
        let explained = routing.explain(&key(n), &open, now).unwrap();
        let class = explained.classes.iter().find(|class| class.class == CLASS.as_str()).unwrap().clone();
        assert!(class.first.is_some() && class.of == if n == TRUSTED { 1 } else { 5 }, "{class:?}");
        (class.after, class.why.unwrap_or_default())
    };
    for (n, after, why) in [
        (1, Some(0), ""),
        (2, None, "it has just said that it has no executor of the class"),
        (3, Some(2), "its reliability is 0.5, that of the first 1.0"),
        (4, None, "it was reported for cheating and is blacklisted for 60 s more"),
        (5, Some(3), "it declined, or could not be reached, within the last 10 s"),
        (6, Some(4), "its breaker is open"),
        (7, Some(1), "its manifest is not known"),
        (TRUSTED, Some(0), ""),
    ] {
        assert_eq!(explain(&routing, n), (after, why.to_owned()), "miner {n}");
    }
    (0..5).for_each(|_| assert_eq!(pick(&mut routing, &[key(3), key(5), key(6), key(7)], now), Ok(key(1))));
    let explained = routing.explain(&key(1), &open, now).unwrap();
    let class = explained.classes.iter().find(|class| class.class == CLASS.as_str()).unwrap();
    let full = "it is full: 5 of our jobs run there, it has 5 executors of the class";
    assert_eq!((class.after, class.why.as_deref(), class.of), (None, Some(full), 4));
    assert_eq!(explained.miner.running, [(CLASS.as_str(), 5)].into());
    assert!(routing.explain(&key(99), &open, now).is_none());
    let shown = &routing.miners(&open, now)[2];
    assert_eq!(shown.last_error.as_ref().unwrap().why, "waiting for the end");
}

/// Whatever happens to a table of miners: no job is given to a miner that is passed over, the one that is chosen says
/// of itself that it is the first, a job finds a miner exactly if one is not passed over, and what runs is counted
/// right.
#[test]
fn the_choice_is_what_is_explained_over_random_histories() {
    let seed = Rng::from_entropy().next_u64();
    println!("seed {seed}");
    let mut rng = Rng::new(seed);
    for _ in 0..40 {
        let mut now = Instant::now();
        let miners = 1 + (rng.next_u64() % 9) as u8;
        let mut routing = Routing::new((1..=miners).map(miner).collect(), HALF_LIFE);
        let mut running: Vec<u8> = Vec::new();
        for _ in 0..200 {
            let n = 1 + (rng.next_u64() % u64::from(miners)) as u8;
            match rng.next_u64() % 10 {
                0 | 1 => routing.manifest(&key(n), has((rng.next_u64() % 4) as i64), now),
                2 => routing.cool_down(&key(n), now),
                3 => routing.incident(&key(n), Incident::ALL[(rng.next_u64() % 6) as usize], "why", now),
                4 => routing.completed(&key(n), now),
                5 => routing.blacklist(&key(n), now, Duration::from_secs(rng.next_u64() % 600)),
                6 if !running.is_empty() => {
                    let ended = running.swap_remove((rng.next_u64() % running.len() as u64) as usize);
                    routing.release(&key(ended), CLASS);
                }
                7 => now += Duration::from_secs(rng.next_u64() % 3000),
                _ => {
                    let trusted = rng.next_u64().is_multiple_of(3);
                    let open = (rng.next_u64() % 10) as u8;
                    let is_open = |hotkey: &PublicKey| *hotkey == key(open);
                    let view = |hotkey: &PublicKey| Some(BreakerView { is_open: is_open(hotkey), line: String::new() });
                    let of_kind: Vec<(u8, ClassView)> = (1..=miners)
                        .filter(|n| trusted == (*n == TRUSTED))
                        .map(|n| {
                            let classes = routing.explain(&key(n), &view, now).unwrap().classes;
                            (n, classes.into_iter().find(|class| class.class == CLASS.as_str()).unwrap())
                        })
                        .collect();
                    let before = running.len();
                    match routing.reserve(&Ask { trusted, is_open: &is_open, ..ASK }, now) {
                        Ok(chosen) => {
                            let (n, said) = of_kind.iter().find(|(n, _)| key(*n) == chosen.hotkey).unwrap();
                            assert_eq!(said.after, Some(0), "seed {seed}: {said:?}");
                            running.push(*n);
                        }
                        Err(why) => {
                            let nobody = of_kind.iter().all(|(_, said)| said.after.is_none());
                            assert!(nobody, "seed {seed}: {why:?}, {of_kind:?}");
                        }
                    }
                    assert!(running.len() <= before + 1);
                }
            }
            for view in routing.miners(&|_| None, now) {
                let n = (1..=miners).find(|n| key(*n).to_ss58() == view.hotkey).unwrap();
                let count = running.iter().filter(|other| **other == n).count() as i64;
                assert_eq!(view.running.get(CLASS.as_str()).copied().unwrap_or(0), count, "seed {seed}");
            }
        }
    }
}

#[test]
fn a_miner_that_offers_nothing_at_present_is_asked_where_no_other_is_left() {
    let (mut routing, now) = (table(2), Instant::now());
    routing.manifest(&key(1), HashMap::new(), now);
    routing.manifest(&key(2), has(1), now);
    assert_eq!(pick(&mut routing, &[], now), Ok(key(2)));
    assert_eq!(pick(&mut routing, &[key(2)], now), Ok(key(1)));
    routing.manifest(&key(1), has(0), now);
    assert_eq!(pick(&mut routing, &[key(2)], now), Err(NoMiner::None), "it has others, and none of the class");
}

/// What a look at all miners gives.
fn best_of_all(routing: &Routing, ask: &Ask<'_>, now: Instant) -> Option<PublicKey> {
    let ranked = routing.miners.iter().enumerate().filter_map(|(index, miner)| {
        Some((miner.standing(ask, routing.half_life, now).ok()?, Reverse(miner.picked), Reverse(index)))
    });
    ranked.max().map(|(_, _, Reverse(index))| routing.miners[index].address.hotkey)
}

#[test]
fn the_miner_that_is_found_is_the_best_of_all_whatever_happened_before() {
    let seed = Rng::from_entropy().next_u64();
    println!("seed {seed}");
    let mut rng = Rng::new(seed);
    let (mut routing, mut now) = (table(12), Instant::now());
    let classes = [CLASS, ExecutorClass::AlwaysOnGpu24gb];
    let mut running: Vec<(PublicKey, ExecutorClass)> = Vec::new();
    for _ in 0..5_000 {
        let hotkey = key(1 + (rng.next_u64() % 12) as u8);
        let class = classes[(rng.next_u64() % 2) as usize];
        match rng.next_u64() % 16 {
            0..5 => {
                let silent = key(1 + (rng.next_u64() % 12) as u8);
                let (trusted, tried) = (rng.one_in(5), [hotkey]);
                let tried = if rng.one_in(2) { &tried[..] } else { &[] };
                let ask = Ask { class, trusted, tried, is_open: &|miner| *miner == silent };
                let best = best_of_all(&routing, &ask, now);
                let found = routing.reserve(&ask, now).ok().map(|miner| miner.hotkey);
                assert_eq!(found, best, "seed {seed}");
                running.extend(found.map(|miner| (miner, class)));
            }
            5..9 if !running.is_empty() => {
                let (miner, class) = running.swap_remove(rng.next_u64() as usize % running.len());
                routing.release(&miner, class);
            }
            9 => routing.manifest(&hotkey, HashMap::from([(class, (rng.next_u64() % 4) as i64)]), now),
            10 => routing.incident(&hotkey, Incident::Failed, "it gave the job up", now),
            11 => routing.completed(&hotkey, now),
            12 => routing.cool_down(&hotkey, now),
            13 => running.extend(routing.reserve_again(&hotkey, class).map(|miner| (miner.hotkey, class))),
            14 if rng.one_in(20) => routing.blacklist(&hotkey, now, Duration::from_secs(100)),
            15 if rng.one_in(50) => {
                let listed = (1..=12).filter(|_| !rng.one_in(4)).map(miner).collect();
                routing.replace(listed, now);
            }
            _ => now += Duration::from_secs(rng.next_u64() % 60 * if rng.one_in(30) { 60 } else { 1 }),
        }
    }
}
