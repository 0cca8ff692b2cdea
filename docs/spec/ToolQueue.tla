------------------------------ MODULE ToolQueue ------------------------------
(***************************************************************************)
(* The tool side of Anabranch: ONE partition of tool.calls.<queue>, a few  *)
(* tool workers, a few calls.  The agent side is reduced to what it sees:  *)
(* results, hand-offs, deadlines.                                          *)
(*                                                                         *)
(* A committed offset with its metadata is a SET of finished positions:    *)
(* all below the lowest unfinished one, and the finished ones above it;    *)
(* the metadata also says which at-most-once calls may have BEGUN, and     *)
(* which serial calls a former owner goes on with (HELD).                  *)
(*                                                                         *)
(* Broken is the set of rules that are switched off by name.  Broken = {}  *)
(* is the protocol.  Each name in it is a hole: TLC prints the trace.      *)
(***************************************************************************)
EXTENDS Naturals, Sequences, FiniteSets, TLC

CONSTANTS
  W,              \* tool workers
  Queue,          \* the partition as first published: a sequence of call ids
  Amo,            \* the calls that are delivered at most once
  Serial,         \* the calls that share one serial key
  Metadata,       \* TRUE: the broker keeps the commit's metadata
  MaxCrash,       \* a process dies
  MaxFreeze,      \* the group drops a worker that does not know it (yet)
  MaxRebalance,   \* orderly revokes
  MaxLostCommit,  \* a commit fails, or takes effect and its ack is lost
  MaxRepublish,   \* the agent worker publishes a call a second time
  MaxExpiry,      \* deadlines that pass early
  MaxRegress,     \* the committed offsets are lost
  Broken

Rule(name) == name \notin Broken

VARIABLES
  queue,     \* the partition
  kc,        \* what is committed: positions finished, begun, and serial ones handed off
  owner,     \* whom the group coordinator has assigned, or None
  gen,       \* the group's generation
  wk,        \* the workers, see NoWorker
  cm,        \* per worker: its one commit in flight, or NoCommit
  results,   \* calls with a tool.returned in the run's log
  handed,    \* per call: who handed it off, in the run's log
  unknown,   \* calls whose result says "outcome unknown"
  expired,   \* calls past their deadline (the run's log has call.expired)
  execs,     \* how often each call was started
  left       \* faults that may still happen

vars == <<queue, kc, owner, gen, wk, cm, results, handed, unknown, expired, execs, left>>

Ids  == {Queue[i] : i \in 1..Len(Queue)}
None == "none"
NoCommit == [st |-> "none", gen |-> 0, fin |-> {}, begun |-> {}, held |-> {}]
NothingCommitted == [fin |-> {}, begun |-> {}, held |-> {}]

(* at: "out", "in", "revoking" (stops to start), "revoked" (has committed)  *)
NoWorker == [at |-> "out", gen |-> 0, pos |-> 1,
             lane |-> {},     \* positions taken, not started
             run  |-> {},     \* positions executing
             fin  |-> {},     \* positions finished
             ok   |-> {},     \* positions whose commit as begun is confirmed
             unk  |-> {},     \* positions that somebody before may have begun
             held |-> {},     \* serial calls that a former owner goes on with
             seen |-> {}]     \* calls whose result this process has appended

Running(w, c) == \E i \in wk[w].run : queue[i] = c
SomeoneRuns(c) == \E w \in W : Running(w, c)
StillHeld(w) == {i \in wk[w].held : \E v \in W \ {w} : i \in wk[v].run}   \* `until` not passed: clocks are perfect
Resolved(c) == c \in results \cup unknown \cup expired

-----------------------------------------------------------------------------
(* Without the metadata only what lies below the lowest unfinished position *)
(* is known to be finished.                                                 *)
Finished == IF Metadata THEN kc.fin ELSE {i \in kc.fin : 1..i \subseteq kc.fin}

Assign(w) ==
  /\ owner = None /\ owner' = w /\ gen' = gen + 1
  /\ wk' = [wk EXCEPT ![w] = [@ EXCEPT !.at = "in", !.gen = gen + 1, !.pos = 1, !.lane = {}, !.ok = {},
                                       !.fin = Finished, !.held = IF Metadata THEN kc.held ELSE {},
                                       !.unk = IF Metadata /\ Rule("what has begun is not begun again")
                                               THEN kc.begun \ (kc.fin \cup wk[w].run) ELSE {}]]
  /\ UNCHANGED <<queue, kc, cm, results, handed, unknown, expired, execs, left>>

Consume(w) ==
  /\ wk[w].at = "in" /\ wk[w].pos <= Len(queue)
  /\ wk' = [wk EXCEPT ![w].pos = @ + 1,
                      ![w].lane = IF wk[w].pos \in wk[w].fin \cup wk[w].run THEN @ ELSE @ \cup {wk[w].pos}]
  /\ UNCHANGED <<queue, kc, owner, gen, cm, results, handed, unknown, expired, execs, left>>

(* Not executed: a call whose result this process has appended, or one past *)
(* its deadline.                                                            *)
Skip(w) == \E i \in wk[w].lane :
  /\ wk[w].at = "in" /\ queue[i] \in wk[w].seen \cup expired
  /\ wk' = [wk EXCEPT ![w].lane = @ \ {i}, ![w].fin = @ \cup {i}]
  /\ UNCHANGED <<queue, kc, owner, gen, cm, results, handed, unknown, expired, execs, left>>

(* Somebody before us may have begun it: it is told so, and not begun.      *)
TellUnknown(w) == \E i \in wk[w].lane \cap wk[w].unk :
  /\ wk[w].at = "in" /\ unknown' = unknown \cup {queue[i]}
  /\ wk' = [wk EXCEPT ![w].lane = @ \ {i}, ![w].fin = @ \cup {i}, ![w].seen = @ \cup {queue[i]}]
  /\ UNCHANGED <<queue, kc, owner, gen, cm, results, handed, expired, execs, left>>

(* A copy of a call waits behind the call; so do calls with its serial key. *)
MayStart(w, i) == LET c == queue[i] IN
  /\ c \notin wk[w].seen \cup expired /\ ~Running(w, c) /\ i \notin wk[w].unk
  /\ c \in Amo /\ Rule("commit before an at-most-once call") => i \in wk[w].ok
  /\ c \in Serial => /\ \A j \in wk[w].run : queue[j] \notin Serial
                     /\ \A j \in wk[w].lane : queue[j] \in Serial => j >= i
                     /\ Rule("hold the lanes handed off") => StillHeld(w) = {}

Start(w) == \E i \in wk[w].lane :
  /\ wk[w].at = "in" /\ MayStart(w, i)
  /\ wk' = [wk EXCEPT ![w].lane = @ \ {i}, ![w].run = @ \cup {i}]
  /\ execs' = [execs EXCEPT ![queue[i]] = @ + 1]
  /\ UNCHANGED <<queue, kc, owner, gen, cm, results, handed, unknown, expired, left>>

Finish(w) == \E i \in wk[w].run :
  /\ results' = results \cup {queue[i]}
  /\ wk' = [wk EXCEPT ![w].run = @ \ {i}, ![w].seen = @ \cup {queue[i]},
                      ![w].fin = IF wk[w].at = "out" THEN @ ELSE @ \cup {i}]
  /\ UNCHANGED <<queue, kc, owner, gen, cm, handed, unknown, expired, execs, left>>

-----------------------------------------------------------------------------
(* COMMITS: one at a time.  An at-most-once call is committed as begun      *)
(* before it starts, and stays so in every later commit until it is         *)
(* finished.  A revoke commits what is finished or handed off as finished;  *)
(* what has not started is begun no more.                                   *)

AmoIn(S) == {i \in S : queue[i] \in Amo}
AmoRuns(w) == IF Rule("an at-most-once call stays begun") THEN AmoIn(wk[w].run) ELSE {}
Unstarted(w) == AmoIn(wk[w].lane) \ wk[w].unk
ToFinish(w) == IF wk[w].at = "in" THEN wk[w].fin
               ELSE wk[w].fin \cup {i \in wk[w].run : w \in handed[queue[i]] \/ ~Rule("hand off, then commit")}
ToBegin(w)  == (AmoIn(wk[w].lane) \cup AmoRuns(w) \cup wk[w].unk) \ ToFinish(w)
ToHold(w) == StillHeld(w) \cup (IF wk[w].at = "in" THEN {} ELSE {i \in wk[w].run : queue[i] \in Serial})

SendCommit(w) ==
  /\ cm[w] = NoCommit
  /\ \/ wk[w].at = "in" /\ (~(ToFinish(w) \subseteq kc.fin) \/ ~(Unstarted(w) \subseteq wk[w].ok))
     \/ wk[w].at = "revoking" /\ (Rule("hand off, then commit") => \A i \in wk[w].run : w \in handed[queue[i]])
  /\ cm' = [cm EXCEPT ![w] = [st |-> "sent", gen |-> wk[w].gen, fin |-> ToFinish(w), begun |-> ToBegin(w), held |-> ToHold(w)]]
  /\ UNCHANGED <<queue, kc, owner, gen, wk, results, handed, unknown, expired, execs, left>>

(* The coordinator refuses a commit of a former generation.  A client that  *)
(* retries one under its new generation breaks this.                        *)
Accepted(w) == (owner = w /\ cm[w].gen = gen) \/ ~Rule("a commit keeps its generation")
Take(w) == kc' = [fin |-> cm[w].fin, begun |-> cm[w].begun, held |-> cm[w].held]
ApplyCommit(w) ==
  /\ cm[w].st = "sent"
  /\ \/ Accepted(w) /\ Take(w) /\ cm' = [cm EXCEPT ![w].st = "applied"] /\ UNCHANGED left
     \/ ~Accepted(w) /\ cm' = [cm EXCEPT ![w].st = "failed"] /\ UNCHANGED <<kc, left>>
     \/ /\ left.commit > 0 /\ left' = [left EXCEPT !.commit = @ - 1]
        /\ cm' = [cm EXCEPT ![w].st = "failed"]
        /\ UNCHANGED kc \/ (Accepted(w) /\ Take(w))
  /\ UNCHANGED <<queue, owner, gen, wk, results, handed, unknown, expired, execs>>

AckCommit(w) ==
  /\ cm[w].st \in {"applied", "failed"} /\ cm' = [cm EXCEPT ![w] = NoCommit]
  /\ wk' = [wk EXCEPT
       ![w].ok = IF cm[w].st = "applied" /\ (cm[w].gen = wk[w].gen \/ ~Rule("same assignment"))
                 THEN @ \cup cm[w].begun ELSE @,
       ![w].at = IF @ = "revoking" /\ cm[w].gen = wk[w].gen
                    /\ \A i \in wk[w].run : i \in cm[w].fin   \* it was the revoke's own commit
                 THEN "revoked" ELSE @,
       \* A revoke that could not commit cancels its serial calls: they may be redelivered.
       ![w].run = IF wk[w].at = "revoking" /\ cm[w].st = "failed" /\ Rule("cancel if the revoke cannot commit")
                  THEN {i \in @ : queue[i] \notin Serial} ELSE @]
  /\ UNCHANGED <<queue, kc, owner, gen, results, handed, unknown, expired, execs, left>>

-----------------------------------------------------------------------------
(* THE REVOKE CALLBACK: start nothing more; hand off what runs; commit;     *)
(* return.  It returns too if the commit has failed.                        *)

Revoke(w) ==
  /\ owner = w /\ wk[w].at = "in" /\ cm[w] = NoCommit
  /\ left.rebalance > 0 /\ left' = [left EXCEPT !.rebalance = @ - 1]
  /\ wk' = [wk EXCEPT ![w].at = "revoking", ![w].lane = {}]
  /\ UNCHANGED <<queue, kc, owner, gen, cm, results, handed, unknown, expired, execs>>

HandOff(w) == \E i \in wk[w].run :
  /\ wk[w].at \in {"revoking", "revoked"} /\ w \notin handed[queue[i]]
  /\ handed' = [handed EXCEPT ![queue[i]] = @ \cup {w}]
  /\ UNCHANGED <<queue, kc, owner, gen, wk, cm, results, unknown, expired, execs, left>>

Return(w) ==
  /\ wk[w].at = "revoked" /\ \A i \in wk[w].run : w \in handed[queue[i]]
  /\ wk' = [wk EXCEPT ![w].at = "out", ![w].fin = {}, ![w].ok = {}, ![w].unk = {}, ![w].held = {}]
  /\ owner' = IF owner = w THEN None ELSE owner
  /\ UNCHANGED <<queue, kc, gen, cm, results, handed, unknown, expired, execs, left>>

Crash(w) ==
  /\ wk[w] # NoWorker /\ left.crash > 0 /\ left' = [left EXCEPT !.crash = @ - 1]
  /\ wk' = [wk EXCEPT ![w] = NoWorker] /\ cm' = [cm EXCEPT ![w] = NoCommit]
  /\ owner' = IF owner = w THEN None ELSE owner
  /\ (UNCHANGED kc \/ (cm[w].st = "sent" /\ owner = w /\ Accepted(w) /\ Take(w)))
  /\ UNCHANGED <<queue, gen, results, handed, unknown, expired, execs>>

Freeze(w) ==
  /\ owner = w /\ owner' = None
  /\ left.freeze > 0 /\ left' = [left EXCEPT !.freeze = @ - 1]
  /\ UNCHANGED <<queue, kc, gen, wk, cm, results, handed, unknown, expired, execs>>

Notice(w) ==      \* it learns that it is no longer a member, and drops what has not started
  /\ wk[w].at # "out" /\ owner # w
  /\ wk' = [wk EXCEPT ![w].at = "out", ![w].lane = {}, ![w].fin = {}, ![w].ok = {}, ![w].unk = {}, ![w].held = {}]
  /\ UNCHANGED <<queue, kc, owner, gen, cm, results, handed, unknown, expired, execs, left>>

Regress ==
  /\ left.regress > 0 /\ left' = [left EXCEPT !.regress = @ - 1]
  /\ kc' = NothingCommitted
  /\ UNCHANGED <<queue, owner, gen, wk, cm, results, handed, unknown, expired, execs>>

-----------------------------------------------------------------------------
(* THE AGENT SIDE, as far as it matters here                                *)

Republish == \E c \in Ids \ Amo :      \* a publication whose ack was lost
  /\ left.republish > 0 /\ left' = [left EXCEPT !.republish = @ - 1]
  /\ ~Resolved(c) /\ queue' = Append(queue, c)
  /\ UNCHANGED <<kc, owner, gen, wk, cm, results, handed, unknown, expired, execs>>

(* `until` has passed without a result (call.lost): the call is published   *)
(* again; at most once, its outcome is unknown.                             *)
Lost(c) == handed[c] # {} /\ ~Resolved(c) /\ \A v \in handed[c] : ~Running(v, c)
Redispatch == \E c \in Ids \ Amo :
  /\ Lost(c) /\ queue' = Append(queue, c) /\ handed' = [handed EXCEPT ![c] = {}]
  /\ UNCHANGED <<kc, owner, gen, wk, cm, results, unknown, expired, execs, left>>
GiveUp == \E c \in Amo :
  /\ Lost(c) /\ unknown' = unknown \cup {c} /\ handed' = [handed EXCEPT ![c] = {}]
  /\ UNCHANGED <<queue, kc, owner, gen, wk, cm, results, expired, execs, left>>

Expire(c) == /\ ~Resolved(c) /\ expired' = expired \cup {c}
             /\ UNCHANGED <<queue, kc, owner, gen, wk, cm, results, handed, unknown, execs>>
ExpireEarly == /\ left.expiry > 0 /\ left' = [left EXCEPT !.expiry = @ - 1]
               /\ \E c \in Ids : Expire(c)
Init ==
  /\ queue = Queue /\ kc = NothingCommitted /\ owner = None /\ gen = 0
  /\ wk = [w \in W |-> NoWorker] /\ cm = [w \in W |-> NoCommit]
  /\ results = {} /\ unknown = {} /\ handed = [c \in Ids |-> {}] /\ expired = {}
  /\ execs = [c \in Ids |-> 0]
  /\ left = [crash |-> MaxCrash, freeze |-> MaxFreeze, rebalance |-> MaxRebalance, commit |-> MaxLostCommit,
             republish |-> MaxRepublish, expiry |-> MaxExpiry, regress |-> MaxRegress]

Progress ==
  \/ Redispatch \/ GiveUp
  \/ \E w \in W : Assign(w) \/ Consume(w) \/ Skip(w) \/ TellUnknown(w) \/ Start(w) \/ Finish(w) \/ SendCommit(w) \/ ApplyCommit(w)
                  \/ AckCommit(w) \/ HandOff(w) \/ Return(w) \/ Notice(w)
Other ==
  \/ Republish \/ ExpireEarly \/ Regress
  \/ \E w \in W : Revoke(w) \/ Crash(w) \/ Freeze(w)

Next == Progress \/ Other
Spec == Init /\ [][Next]_vars
FairSpec == Spec /\ WF_vars(Progress)

-----------------------------------------------------------------------------
(* WHAT MUST HOLD                                                           *)

Done == \A c \in Ids : Resolved(c)
OnlyRebalances == /\ left.crash = MaxCrash /\ left.freeze = MaxFreeze /\ left.commit = MaxLostCommit
                  /\ left.regress = MaxRegress /\ left.republish = MaxRepublish

NoCallIsLost == Done \/ ENABLED Progress     \* no call needs a deadline for it
EveryCallEnds         == <>Done
AtMostOnce   == \A c \in Amo : execs[c] <= 1
ResultsAreOfExecutions     == \A c \in results : execs[c] >= 1
RebalancesRepeatNoCall == OnlyRebalances => \A c \in Ids : execs[c] <= 1
RebalancesLoseNoOutcome == OnlyRebalances /\ left.expiry = MaxExpiry => expired \cup unknown = {}
SerialIn(w) == {i \in wk[w].run : queue[i] \in Serial}
OneAtATime == \A v, w \in W : v # w => SerialIn(v) = {} \/ SerialIn(w) = {}
(* Crashes, rebalances, failed commits: yes.  A process that is frozen past *)
(* its session, or committed offsets that go back: no.                      *)
SerialKeysHold == left.freeze = MaxFreeze /\ left.regress = MaxRegress => OneAtATime
CommitsLoseNothing == \A i \in kc.fin : LET c == queue[i] IN
  Resolved(c) \/ handed[c] # {} \/ \E j \in 1..Len(queue) : j > i /\ queue[j] = c

Symmetry == Permutations(W)

(* For the .cfg files: the queues.                                          *)
AB  == <<"a", "b">>
ABC == <<"a", "b", "c">>
A   == <<"a">>
=============================================================================
