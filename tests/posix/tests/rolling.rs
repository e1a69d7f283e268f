//! Every server is restarted in turn while ordinary programs work on the mount: none of them sees an error.
#![allow(clippy::unwrap_used, reason = "a test")]

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use gofs_posix_tests::{Cluster, Server, shell, wait_for};

const PATIENCE: Duration = Duration::from_secs(120);

/// Commits, branches, merges, and checks of the whole repository.
const GIT: &str = r#"
export GIT_CONFIG_GLOBAL=/dev/null GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@x GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@x
test -d repo || git init -q -b main repo; cd repo
for file in $(seq 6); do echo "$ROUND $file" >> file$file; done
git add -A; git commit -qm "commit $ROUND"
git checkout -q -b side-$ROUND; echo $ROUND > side-$ROUND; git add -A; git commit -qm side
git checkout -q main; git merge -q --no-ff -m merge side-$ROUND
test -z "$(git status --porcelain)"
if [ $((ROUND % 5)) = 4 ]; then git gc -q; git fsck --full --strict; fi
"#;

/// Transactions, and a check of the whole database.
const SQLITE: &str = r#"
{ echo 'CREATE TABLE IF NOT EXISTS t (round INT, n INT, text);'
  for n in $(seq 20); do echo "BEGIN IMMEDIATE; INSERT INTO t VALUES ($ROUND, $n, hex(randomblob(300))); COMMIT;"; done
} | sqlite3 -bail -cmd '.timeout 60000' db
test "$(sqlite3 -cmd '.timeout 60000' db 'PRAGMA integrity_check; SELECT count(*) FROM t;')" = "ok
$(((ROUND + 1) * 20))"
"#;

/// A library and a program from clean sources, and what it prints.
const COMPILER: &str = r#"
rm -rf build; mkdir -p build/src build/obj; cd build
for i in $(seq 8); do printf 'int f%d(int x) { return x + %d; }\n' $i $ROUND > src/f$i.c; done
{ for i in $(seq 8); do echo "int f$i(int);"; done; echo '#include <stdio.h>'
  echo 'int main(void) { int x = 0;'; for i in $(seq 8); do echo "x = f$i(x);"; done
  echo 'printf("%d\n", x); return 0; }'; } > src/main.c
for f in src/*.c; do cc -g -c $f -o obj/$(basename $f .c).o; done
ar rcs obj/lib.a obj/f?.o; cc -o program obj/main.o obj/lib.a
test "$(./program)" = $((8 * ROUND))
"#;

/// A tree that is packed, unpacked and compared.
const TAR: &str = r#"
rm -rf tree copy; mkdir -p tree/a/b copy
for i in $(seq 40); do head -c $((i * 997)) /dev/urandom > tree/a/b/$i; ln -s b/$i tree/a/$i; done
head -c 3000000 /dev/urandom > tree/large
tar -cf tree.tar tree; tar -C copy -xf tree.tar; diff -r tree copy/tree
"#;

/// Runs the script over and over, each time with the next ROUND, until it is told to stop. Panics with what a program
/// said if it failed.
fn again_and_again(dir: &Path, script: &str, rounds: &AtomicU64, stop: &AtomicBool) {
    std::fs::create_dir(dir).unwrap();
    while !stop.load(Ordering::Acquire) {
        let round = rounds.load(Ordering::Acquire);
        shell(dir, &format!("ROUND={round}\n{script}"));
        rounds.fetch_add(1, Ordering::AcqRel);
    }
}

struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

#[test]
fn programs_see_nothing_of_a_restart_of_every_server() {
    let mut cluster = Cluster::builder().metas(3).start();
    cluster.create_namespace("test", &[]);
    let mount = cluster.mount("m");
    let stop = AtomicBool::new(false);
    let programs = [("git", GIT), ("sqlite", SQLITE), ("compiler", COMPILER), ("tar", TAR)];
    let rounds: [AtomicU64; 4] = Default::default();
    std::thread::scope(|scope| {
        // Also where something below panics: the scope waits for its threads.
        let _stop = StopOnDrop(&stop);
        let running: Vec<_> = programs
            .iter()
            .zip(&rounds)
            .map(|((name, script), rounds)| {
                let dir = mount.join(name);
                let stop = &stop;
                scope.spawn(move || again_and_again(&dir, script, rounds, stop))
            })
            .collect();
        let all_work = |cluster: &Cluster, what: &str| {
            let before: Vec<u64> = rounds.iter().map(|rounds| rounds.load(Ordering::Acquire)).collect();
            wait_for(&format!("every program to get on {what}"), PATIENCE, || {
                assert!(running.iter().all(|program| !program.is_finished()), "a program failed {what}");
                rounds.iter().zip(&before).all(|(rounds, before)| rounds.load(Ordering::Acquire) > *before)
            });
            cluster.wait_healthy();
        };
        all_work(&cluster, "at the start");
        let (metas, chunks) = (cluster.metas.len(), cluster.chunks.len());
        for i in 0..metas + chunks {
            let server: &mut Server =
                if i < metas { &mut cluster.metas[i] } else { &mut cluster.chunks[i - metas] };
            assert!(server.stop(), "a server did not stop when it was told to");
            server.restart();
            cluster.wait_healthy();
            all_work(&cluster, &format!("after restart {i}"));
        }
        stop.store(true, Ordering::Release);
        for program in running {
            program.join().unwrap();
        }
    });
    let other = cluster.mount("other");
    shell(&other.join("git"), "git -c safe.directory='*' -C repo fsck --full --strict");
    shell(&other.join("tar"), "diff -r tree copy/tree");
    cluster.check();
    mount.unmount();
}
