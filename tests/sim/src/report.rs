//! What a run found, and its end.

use std::sync::{Mutex, PoisonError};

use crate::world;

static VIOLATIONS: Mutex<Vec<String>> = Mutex::new(Vec::new());
static NUMBERS: Mutex<Vec<(&'static str, u64)>> = Mutex::new(Vec::new());

/// Exit status of a run that found something.
pub const VIOLATED: i32 = 3;

/// An invariant does not hold. Each is told once: what follows from a violation says nothing new.
pub fn violation(invariant: &str, what: &str) {
    let mut all = VIOLATIONS.lock().unwrap_or_else(PoisonError::into_inner);
    if !all.iter().any(|told| told.starts_with(invariant)) {
        let at = if world::is_simulated() { world::with(|world| world.now()) } else { 0 };
        eprintln!("violation of {invariant} at {} ms: {what}", at / world::MILLI_NS);
        all.push(format!("{invariant}: {what}"));
    }
}

/// Tells of a violation where that is what was found.
pub fn expect<T>(invariant: &str, found: Result<T, String>) -> Option<T> {
    found.map_err(|what| violation(invariant, &what)).ok()
}

/// Whether there was one.
pub fn is_violated() -> bool {
    !VIOLATIONS.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
}

/// A number for the summary; what has the same name is added up.
pub fn count(what: &'static str, number: u64) {
    let mut numbers = NUMBERS.lock().unwrap_or_else(PoisonError::into_inner);
    match numbers.iter_mut().find(|(name, _)| *name == what) {
        Some((_, sum)) => *sum += number,
        None => numbers.push((what, number)),
    }
}

/// Prints the summary, one line, and ends the process: simulated threads that wait for ever are left as they are.
pub fn leave() -> ! {
    let violations = VIOLATIONS.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let numbers = NUMBERS.lock().unwrap_or_else(PoisonError::into_inner);
    let (trace, steps, now) = world::with(|world| (world.trace(), world.steps(), world.now()));
    let numbers: String = numbers.iter().map(|(what, number)| format!(" {what}={number}")).collect();
    println!("trace={trace:016x} steps={steps} virtual_ms={}{numbers}", now / world::MILLI_NS);
    for violation in &violations {
        println!("VIOLATION {}", violation.lines().next().unwrap_or_default());
    }
    if std::env::var_os("GOFS_SIM_HOLD").is_some() {
        // For a debugger: every thread is where it waits.
        // SAFETY: waits for a signal.
        unsafe { libc::pause() };
    }
    let status = if violations.is_empty() { 0 } else { VIOLATED };
    // SAFETY: ends the process without running what other threads could still wait for.
    unsafe { libc::_exit(status) }
}
