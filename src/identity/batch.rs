//! Many signatures checked at once, for a fraction of the price of as many single checks.

use std::ops::Range;

use super::keys::{CONTEXT, holds};
use super::{PublicKey, Signature};

/// How many signatures share one equation. Twice as many are hardly cheaper each, and a wrong one spoils more work.
const MAX_BATCH: usize = 32;

/// Whether each key signed its data with its signature: for every item exactly what [`PublicKey::verify`] says.
///
/// Good unwrapped signatures, of one key above all, take the cheap way; each wrong or wrapped one costs a few single
/// checks. It works for as long as that takes, 13 µs an item at best and some 150 µs where all are wrong, and cannot be
/// interrupted: the caller bounds the number.
///
/// # Panics
/// When the system has no randomness to give.
pub fn verify_batch(items: &[(PublicKey, &[u8], Signature)]) -> Vec<bool> {
    let mut order: Vec<usize> = (0..items.len()).collect();
    // Neighbours of one key share its term of the equation, and the work to read it.
    order.sort_by_key(|&place| items[place].0);
    let mut batch = Batch::default();
    for of_one_key in order.chunk_by(|&a, &b| items[a].0 == items[b].0) {
        let Some(key) = items[of_one_key[0]].0.read() else {
            continue;
        };
        for &place in of_one_key {
            let (_, data, signature) = &items[place];
            if let Some(signature) = signature.read() {
                batch.places.push(place);
                batch.keys.push(key);
                batch.messages.push(data);
                batch.signatures.push(signature);
            }
        }
    }
    let mut verdicts = vec![false; items.len()];
    let count = batch.places.len();
    for start in (0..count).step_by(MAX_BATCH) {
        batch.check(start..count.min(start + MAX_BATCH), &mut verdicts);
    }
    verdicts
}

/// The items that can be read at all, one row each.
#[derive(Default)]
struct Batch<'d> {
    places: Vec<usize>,
    keys: Vec<schnorrkel::PublicKey>,
    messages: Vec<&'d [u8]>,
    signatures: Vec<schnorrkel::Signature>,
}

impl Batch<'_> {
    /// Sets the verdicts of some rows: all at once if they are good, else by halves.
    fn check(&self, rows: Range<usize>, verdicts: &mut [bool]) {
        if rows.len() == 1 {
            let row = rows.start;
            verdicts[self.places[row]] = holds(&self.keys[row], self.messages[row], &self.signatures[row]);
        } else if self.all_good(rows.clone()) {
            self.places[rows].iter().for_each(|&place| verdicts[place] = true);
        } else {
            let middle = rows.start + rows.len() / 2;
            self.check(rows.start..middle, verdicts);
            self.check(middle..rows.end, verdicts);
        }
    }

    /// Whether every row is a good signature of the unwrapped data; a wrong one passes with a chance of 2^-128.
    ///
    /// The factors of the equation are drawn at random: the deterministic ones of the library do not depend on all of
    /// a signature, so that a forger could compute signatures whose errors cancel out.
    fn all_good(&self, rows: Range<usize>) -> bool {
        let context = schnorrkel::signing_context(CONTEXT);
        let transcripts = self.messages[rows.clone()].iter().map(|message| context.bytes(message));
        schnorrkel::verify_batch(transcripts, &self.signatures[rows.clone()], &self.keys[rows], true).is_ok()
    }
}
