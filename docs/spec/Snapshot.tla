------------------------------ MODULE Snapshot ------------------------------
(***************************************************************************)
(* Cleaning: one partition of agent.log, two runs.  A snapshot says again  *)
(* in one place what a run is, so that `low`, where the next owner begins  *)
(* to fold, can move past the run's older events.                          *)
(*                                                                         *)
(* Run "x" has three events, the third closes it; any owner, or zombie,    *)
(* may append a snapshot of it.  Run "y" has two events and holds low      *)
(* back.  Events come from elsewhere, at any time.                         *)
(*                                                                         *)
(* Broken is the set of rules that are switched off by name.               *)
(***************************************************************************)
EXTENDS Naturals, Sequences, FiniteSets, TLC

CONSTANTS W, MaxCrash, MaxFreeze, MaxSnapshot, Broken

Rule(name) == name \notin Broken

VARIABLES
  log,     \* agent.log
  ref,     \* history: ref[o] is the fold of the whole log up to o, snapshots left out
  kc,      \* the committed low
  owner, wk,
  net,     \* per worker: a snapshot that is on its way
  left
vars == <<log, ref, kc, owner, wk, net, left>>

None == "none"
Max(S) == CHOOSE x \in S : \A y \in S : y <= x
Min(S) == CHOOSE x \in S : \A y \in S : x <= y
Closed == [x |-> 3, y |-> 2]       \* how many events close a run

-----------------------------------------------------------------------------
(* THE FOLD.  It begins at `from`, and ignores events of a run that it does *)
(* not know (they belong to one that is closed).                            *)
Empty == [from |-> 1,
          n     |-> [x |-> 0, y |-> 0],   \* how far each run is: events that counted
          first |-> [x |-> 0, y |-> 0],   \* from where its events are needed
          last  |-> 0]                    \* x's last event, counted or not

IsOpen(f, r) == f.n[r] > 0 /\ f.n[r] < Closed[r]
Step(f, e, o) ==
  CASE e.n = 1 /\ f.n[e.run] = 0 -> [f EXCEPT !.n[e.run] = 1, !.first[e.run] = o]
    [] e.n > 1 /\ IsOpen(f, e.run) -> [f EXCEPT !.n[e.run] = @ + 1]
    [] OTHER -> f
FoldEvent(f, e, o) == LET g == Step(f, e, o) IN IF e.run = "x" THEN [g EXCEPT !.last = o] ELSE g

(* A snapshot counts only if this fold has read everything from `as_of` on, *)
(* and none of that was of the run.                                         *)
Valid(f, e) ==
  /\ e.as_of >= f.from \/ ~Rule("as_of is not below where the fold began")
  /\ f.last < e.as_of  \/ ~Rule("no event of the run since as_of")
FoldSnapshot(f, e) ==
  CASE ~Valid(f, e)    -> f
    [] f.n.x = 0       -> [f EXCEPT !.n.x = e.x, !.first.x = e.as_of]
    [] IsOpen(f, "x")  -> [f EXCEPT !.first.x = Max({@, e.as_of})]
    [] OTHER -> f
Fold(f, e, o) == IF e.k = "event" THEN FoldEvent(f, e, o) ELSE FoldSnapshot(f, e)

-----------------------------------------------------------------------------
(* A WORKER                                                                 *)
NoWorker == [at |-> "out", pos |-> 1, end |-> 1, f |-> Empty, snap |-> 0]
Live(w) == wk[w].at = "in" /\ wk[w].pos >= wk[w].end
N == Len(log) + 1
Ref == IF log = <<>> THEN Empty ELSE ref[Len(log)]
AppendLog(e) == /\ log' = Append(log, e)
                /\ ref' = Append(ref, IF e.k = "event" THEN Fold(Ref, e, N) ELSE Ref)

LowOf(w) == LET f == wk[w].f
                x == IF ~Rule("low waits for the fold") /\ wk[w].snap # 0 THEN wk[w].snap ELSE f.first.x
            IN Min({wk[w].pos} \cup {x : r \in {r \in {"x"} : IsOpen(f, r)}}
                               \cup {f.first.y : r \in {r \in {"y"} : IsOpen(f, r)}})

Event == \E r \in {"x", "y"} :
  /\ Ref.n[r] < Closed[r] /\ AppendLog([k |-> "event", run |-> r, n |-> Ref.n[r] + 1])
  /\ UNCHANGED <<kc, owner, wk, net, left>>
RECURSIVE ReadAll(_)
ReadAll(x) == IF x.pos = N THEN x ELSE ReadAll([x EXCEPT !.f = Fold(@, log[x.pos], x.pos), !.pos = @ + 1])
Read(w) ==
  /\ wk[w].at = "in" /\ wk[w].pos < N /\ wk' = [wk EXCEPT ![w] = ReadAll(@)]
  /\ UNCHANGED <<log, ref, kc, owner, net, left>>
Snapshot(w) ==
  /\ Live(w) /\ IsOpen(wk[w].f, "x") /\ net[w] = <<>> /\ wk[w].snap < wk[w].pos
  /\ left.snapshot > 0 /\ left' = [left EXCEPT !.snapshot = @ - 1]
  /\ net' = [net EXCEPT ![w] = <<[k |-> "snapshot", x |-> wk[w].f.n.x, as_of |-> wk[w].pos]>>]
  /\ UNCHANGED <<log, ref, kc, owner, wk>>
Deliver(w) ==
  /\ net[w] # <<>> /\ AppendLog(net[w][1]) /\ net' = [net EXCEPT ![w] = <<>>]
  /\ wk' = [wk EXCEPT ![w].snap = IF wk[w].at = "in" THEN net[w][1].as_of ELSE @]
  /\ UNCHANGED <<kc, owner, left>>
Commit(w) ==
  /\ owner = w /\ Live(w) /\ kc # LowOf(w) /\ kc' = LowOf(w)
  /\ UNCHANGED <<log, ref, owner, wk, net, left>>
Assign(w) ==
  /\ owner = None /\ wk[w].at = "out" /\ owner' = w
  /\ wk' = [wk EXCEPT ![w] = [NoWorker EXCEPT !.at = "in", !.pos = kc, !.end = N, !.f.from = kc]]
  /\ UNCHANGED <<log, ref, kc, net, left>>
Crash(w) ==
  /\ wk[w].at = "in" /\ left.crash > 0 /\ left' = [left EXCEPT !.crash = @ - 1]
  /\ wk' = [wk EXCEPT ![w] = NoWorker] /\ owner' = IF owner = w THEN None ELSE owner
  /\ UNCHANGED net \/ net' = [net EXCEPT ![w] = <<>>]
  /\ UNCHANGED <<log, ref, kc>>
Freeze(w) ==
  /\ owner = w /\ owner' = None /\ left.freeze > 0 /\ left' = [left EXCEPT !.freeze = @ - 1]
  /\ UNCHANGED <<log, ref, kc, wk, net>>

Init == /\ log = <<>> /\ ref = <<>> /\ kc = 1 /\ owner = None
        /\ wk = [w \in W |-> NoWorker] /\ net = [w \in W |-> <<>>]
        /\ left = [crash |-> MaxCrash, freeze |-> MaxFreeze, snapshot |-> MaxSnapshot]
Next == Event \/ \E w \in W : Read(w) \/ Snapshot(w) \/ Deliver(w) \/ Commit(w) \/ Assign(w) \/ Crash(w) \/ Freeze(w)
Spec == Init /\ [][Next]_vars
Symmetry == Permutations(W)

-----------------------------------------------------------------------------
(* WHAT MUST HOLD: a fold that began at the committed low knows every open  *)
(* run exactly, and takes no closed run for an open one.                    *)
Agrees(f, g) == \A r \in {"x", "y"} : IF IsOpen(g, r) THEN f.n[r] = g.n[r] ELSE f.n[r] \in {0, g.n[r]}
EveryFoldAgrees == \A w \in W : Live(w) /\ wk[w].pos > 1 => Agrees(wk[w].f, ref[wk[w].pos - 1])
=============================================================================
