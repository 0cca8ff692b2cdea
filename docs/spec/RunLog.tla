------------------------------- MODULE RunLog -------------------------------
(***************************************************************************)
(* The agent side of Anabranch: ONE partition of agent.requests and of     *)
(* agent.log, a few agent workers, one or two runs.                        *)
(*                                                                         *)
(* A run in Batch has turn 1 (its reply asks for Calls), a batch, and      *)
(* turn 2 (the answer).  Any other run is answered in turn 1.              *)
(*                                                                         *)
(* Anybody appends.  An event carries what it presumes, and the fold       *)
(* accepts it only if that holds there; otherwise it changes nothing.      *)
(* There are no epochs and no locks: `owner` decides who reads requests    *)
(* and who may commit, and nothing else.                                   *)
(*                                                                         *)
(* Broken is the set of rules that are switched off by name.  Broken = {}  *)
(* is the protocol.  Each name in it is a hole: TLC prints the trace.      *)
(***************************************************************************)
EXTENDS Naturals, Sequences, FiniteSets, TLC

CONSTANTS
  W,              \* agent workers
  Requests,       \* agent.requests: a sequence of <<kind, run>>; see the end
  Batch,          \* the runs whose first reply asks for tools
  Calls,          \* the calls of such a batch
  Amo,            \* those of Calls that are delivered at most once
  Prefix,         \* what the log holds already: a model can begin in mid-run
  Metadata,       \* TRUE: the broker keeps the commit's metadata
  MaxCrash,       \* a process dies; what it had in flight may land, or not
  MaxFreeze,      \* the group drops a worker that does not know it (yet)
  MaxRebalance,   \* orderly revokes
  MaxLostAck,     \* a record is written, its ack is lost, it is sent again
  MaxToolHandOff, \* a tool worker hands a call off, and goes on with it
  MaxToolCrash,   \* ... and dies
  MaxExpiry,      \* deadlines that pass early
  MaxFastClock,   \* an owner believes so before they have
  MaxCancel,      \* a client appends run.cancelled
  MaxCommit,
  MaxRegress,     \* Kafka's committed offsets are lost
  MaxLog,         \* the protocol never needs more records (a livelock would)
  Broken

Rule(name) == name \notin Broken

VARIABLES
  log,      \* agent.log
  ref,      \* history: ref[o] is the fold of the whole log up to offset o
  kc,       \* what is committed to Kafka: where to start reading, with metadata
  owner,    \* whom the group coordinator has assigned, or None
  wk,       \* the workers, see NoWorker
  net,      \* per worker: appends not acknowledged yet
  tool,     \* per call: how often published, queued, going on, returned, dead
  late,     \* the calls whose deadline is past, by the broker's clock
  starts,   \* how often each model call was made
  answers,  \* agent.responses
  left      \* faults that may still happen

vars == <<log, ref, kc, owner, wk, net, tool, late, starts, answers, left>>

None == "none"
NoToken == <<>>
Max(S) == CHOOSE x \in S : \A y \in S : y <= x
Min(S) == CHOOSE x \in S : \A y \in S : x <= y

(* A life is a run as opened by one request: a run id that comes again      *)
(* after its run was closed and forgotten is another life.                  *)
Kind(i) == Requests[i][1]
Run(i)  == Requests[i][2]
Runs    == {Run(i) : i \in 1..Len(Requests)}
Lives   == {<<Run(i), i>> : i \in {i \in 1..Len(Requests) : Kind(i) = "run"}}
Models  == {<<l[1], l[2], t>> : l \in Lives, t \in {1, 2}}     \* a model call: a life and a turn
Pairs   == {<<l[1], l[2], c>> : l \in Lives, c \in Calls}      \* a tool call
Expired == 99                            \* results that no tool gave
Unknown == 98

-----------------------------------------------------------------------------
(* THE FOLD: pure, one record at a time.                                    *)

NoRun == [st |-> "unknown", first |-> 0, life |-> 0, end |-> 0, cancelled |-> FALSE,
          rep  |-> <<0, 0>>,               \* the replies that won
          hand |-> <<{}, {}>>,             \* per turn: who goes on with the model call
          due  |-> [c \in Calls |-> 0],    \* where its publication became due
          out  |-> [c \in Calls |-> 0],    \* the hand-off that is outstanding
          tok  |-> [c \in Calls |-> NoToken], \* who may publish it (at most once)
          res  |-> [c \in Calls |-> 0]]

Empty == [next |-> 1,    \* the request to be taken up next
          done |-> 1,    \* below it, no publication is to be made again
          link |-> 0,    \* where `next` has last moved
          notes  |-> {},   \* rejected requests, which are answered with an error
          run  |-> [r \in Runs |-> NoRun]]

AllIn(x) == \A c \in Calls : x.res[c] # 0
InBatch(x, r) == r \in Batch /\ x.st = "open" /\ x.rep[1] # 0
Asked(x, r, t) == x.st = "open" /\ (t = 2 => InBatch(x, r) /\ AllIn(x))
OwedModels(f) == {m \in Models : LET x == f.run[m[1]] IN
                    x.life = m[2] /\ Asked(x, m[1], m[3]) /\ x.rep[m[3]] = 0}

(* Publications: <<run, life, call, the offset that made it due>>.  Call 0  *)
(* is the answer.  A call is due until its result is in.                    *)
Due(f) == {<<p[1], p[2], p[3], f.run[p[1]].due[p[3]]>> : p \in {p \in Pairs : LET x == f.run[p[1]] IN
              x.life = p[2] /\ InBatch(x, p[1]) /\ x.res[p[3]] = 0}}
     \cup {<<r, f.run[r].life, 0, f.run[r].end>> : r \in {r \in Runs : f.run[r].st = "closed"}}
     \cup f.notes

Close(f, r, o) == [f EXCEPT !.run[r].st = "closed", !.run[r].end = o]

(* What came from agent.requests names the request before it, so that each  *)
(* counts once and in order, however often and by whomever it is appended.  *)
IsLink(e) == e.k \in {"run.requested", "request.noted"}
Noted(e, code) == e.k = "request.noted" /\ e.code = code
Fits(f, e) == IF Rule("requests in order") THEN e.after = f.next ELSE e.req >= f.next
FoldLink(f, e, o) ==
  LET g == [f EXCEPT !.next = e.req + 1, !.link = o]
      open == f.run[e.run].st = "open"
  IN CASE ~Fits(f, e) -> f
       [] e.k = "run.requested" /\ ~open -> [g EXCEPT !.run[e.run] = [NoRun EXCEPT !.st = "open", !.first = o, !.life = e.req]]
       [] Noted(e, "rejected") -> [g EXCEPT !.notes = @ \cup {<<e.run, e.req, 0, o>>}]
       [] Noted(e, "cancelled") /\ open -> [Close(g, e.run, o) EXCEPT !.run[e.run].cancelled = TRUE]
       [] Noted(e, "cancelled") /\ ~Rule("a cancel request always moves on") -> f
       [] OTHER -> g

(* The other events speak of a life that is open.                           *)
Speaks(f, e) == LET x == f.run[e.run] IN
  x.st = "open" /\ (x.life = e.life \/ ~Rule("an event names its life"))

FoldReply(f, e, o) ==
  IF ~Asked(f.run[e.run], e.run, e.turn) \/ (f.run[e.run].rep[e.turn] # 0 /\ Rule("the first reply wins")) THEN f
  ELSE LET g == [f EXCEPT !.run[e.run].rep[e.turn] = e.a] IN
       IF e.turn = 1 /\ e.run \in Batch THEN [g EXCEPT !.run[e.run].due = [c \in Calls |-> o]]
       ELSE Close(g, e.run, o)

FoldHandOff(f, e) ==
  IF Asked(f.run[e.run], e.run, e.turn) /\ f.run[e.run].rep[e.turn] = 0
  THEN [f EXCEPT !.run[e.run].hand[e.turn] = @ \cup {e.w}] ELSE f

(* Of a call of the open batch that has no result yet.                      *)
Result(f, e, v) == [f EXCEPT !.run[e.run].res[e.call] = v, !.run[e.run].out[e.call] = 0]
FoldCall(f, e, o) ==
  LET x == f.run[e.run] IN
  CASE ~InBatch(x, e.run) \/ x.res[e.call] # 0 -> f
    [] e.k = "tool.returned" -> Result(f, e, e.v)
    [] e.k = "call.expired"  -> IF e.late \/ ~Rule("the broker's time is past the deadline") THEN Result(f, e, Expired) ELSE f
    [] e.k = "calls.handed_off" -> [f EXCEPT !.run[e.run].out[e.call] = o]
    [] e.k = "call.lost" -> IF x.out[e.call] # e.handoff /\ Rule("that hand-off is outstanding") THEN f
                       ELSE IF e.call \in Amo THEN Result(f, e, Unknown)
                       ELSE [f EXCEPT !.run[e.run].due[e.call] = o, !.run[e.run].out[e.call] = 0]
    [] e.k = "call.dispatched" -> IF x.tok[e.call] # NoToken /\ Rule("the first dispatch wins") THEN f
                             ELSE [f EXCEPT !.run[e.run].tok[e.call] = e.token]

Fold(f, e, o) ==
  CASE IsLink(e) -> FoldLink(f, e, o)
    [] e.k = "partition.released"  -> [f EXCEPT !.done = Max({@, e.done})]
    [] e.k = "run.cancelled" -> IF f.run[e.run].st # "open" THEN f
                            ELSE [Close(f, e.run, o) EXCEPT !.run[e.run].cancelled = TRUE]
    [] OTHER -> CASE ~Speaks(f, e) -> f
                  [] e.k = "model.replied" -> FoldReply(f, e, o)
                  [] e.k = "model.handed_off" -> FoldHandOff(f, e)
                  [] OTHER -> FoldCall(f, e, o)

(* Folding may start at any `low` that was committed.  The metadata tells   *)
(* the next request as of low.  Without it, low is where `next` has moved,  *)
(* and the record there tells.                                              *)
Start(c) == [Empty EXCEPT !.next = IF Metadata THEN c.next
                                   ELSE IF c.low <= Len(log) /\ IsLink(log[c.low]) THEN log[c.low].after ELSE 1]

-----------------------------------------------------------------------------
(* A WORKER                                                                 *)
(* at: "out", "in" (assigned), "revoking" (inside the revoke callback),     *)
(* "leaving" (the same, while still silent)                                 *)
NoWorker == [at |-> "out", knows |-> FALSE,
             pos |-> 1, f |-> Empty,
             end |-> 1,        \* the end of the log, captured when assigned: silent up to there
             asg |-> 1,        \* history: the end of the log when assigned
             done |-> 1,       \* from the commit's metadata
             token |-> NoToken,   \* of this process and takeover
             calls |-> {},     \* model calls in flight: <<run, life, turn, attempt>>
             acked |-> {},     \* publications acknowledged to this process
             wait  |-> {},     \* appends sent and not yet read back
             up    |-> {}]     \* hand-offs whose time is up, with the end captured then

(* It believes so; a worker frozen past its session still does.             *)
Live(w) == wk[w].at = "in" /\ wk[w].pos >= wk[w].end

Calling(w, m) == \E x \in wk[w].calls : <<x[1], x[2], x[3]>> = m
Of(e) == <<e.run, e.life, e.turn>>
Replies(S, m) == \E e \in S : e.k = "model.replied" /\ Of(e) = m
SentFor(w, k, p) == \E e \in wk[w].wait : e.k = k /\ <<e.run, e.life, e.call>> = p

IsAmo(p) == p[3] \in Amo
Tok(w, p) == wk[w].f.run[p[1]].tok[p[3]]
BelowDone(w, p) == p[4] < Max({wk[w].done, wk[w].f.done})
                   /\ (IsAmo(p) => ~Rule("done is silent on at most once"))
Wanted(w) == {p \in Due(wk[w].f) : p \notin wk[w].acked /\ ~BelowDone(w, p)}
(* At most once: only the token that the log has accepted.                  *)
ToPublish(w) == {p \in Wanted(w) : IsAmo(p) /\ Rule("publish by the token") => Tok(w, p) = wk[w].token}

DoneOf(w) == Min({p[4] : p \in {p \in Wanted(w) : IsAmo(p) => ~Rule("done is silent on at most once")}} \cup {wk[w].pos})

(* low: the oldest event that an open or unanswered run needs.              *)
Unanswered(w) == {p \in Wanted(w) : p[3] = 0}
Firsts(w) == LET f == wk[w].f IN
       {f.run[r].first : r \in {r \in Runs : f.run[r].st = "open"}}
  \cup IF ~Rule("open until answered") THEN {}
       ELSE {IF p \in f.notes THEN p[4] ELSE f.run[p[1]].first : p \in Unanswered(w)}
LowOf(w) == LET m == Min(Firsts(w) \cup {wk[w].pos}) IN
            IF Metadata \/ ~Rule("without metadata low is a link") THEN m
            ELSE IF wk[w].f.link = 0 THEN 1 ELSE Min({m, wk[w].f.link})
NextOf(w, low) == IF low = wk[w].pos \/ ~Rule("next as of low") THEN wk[w].f.next
                  ELSE IF IsLink(log[low]) THEN log[low].after ELSE 1   \* known: that event is in its fold
CommitOf(w) == LET low == LowOf(w) IN
               [low |-> low, done |-> IF Metadata THEN DoneOf(w) ELSE 1, next |-> IF Metadata THEN NextOf(w, low) ELSE 1]

-----------------------------------------------------------------------------
(* STEPS                                                                    *)

AppendLog(e) == /\ log' = Append(log, e)
                /\ ref' = Append(ref, Fold(IF log = <<>> THEN Empty ELSE ref[Len(log)], e, Len(log) + 1))

(* The broker's time is on the record.                                      *)
Stamp(e)   == IF e.k = "call.expired" THEN [e EXCEPT !.late = <<e.run, e.life, e.call>> \in late] ELSE e
Unstamp(e) == IF e.k = "call.expired" THEN [e EXCEPT !.late = FALSE] ELSE e

(* An append lands, requests in their order.  If an ack is lost that record *)
(* is sent again, by a fresh producer; others may have landed before it.    *)
InOrder(w, e) == IsLink(e) => \A d \in net[w] : IsLink(d) => d.req >= e.req
Deliver(w) == \E e \in net[w] :
  /\ AppendLog(Stamp(e))
  /\ \/ InOrder(w, e) /\ net' = [net EXCEPT ![w] = @ \ {e}] /\ UNCHANGED left
     \/ /\ left.ack > 0 /\ left' = [left EXCEPT !.ack = @ - 1]
        /\ UNCHANGED net \/ (~InOrder(w, e) /\ net' = [net EXCEPT ![w] = @ \ {e}])
  /\ UNCHANGED <<kc, owner, wk, tool, late, starts, answers>>

Send(w, E) == /\ net' = [net EXCEPT ![w] = @ \cup E]
              /\ wk' = [wk EXCEPT ![w].wait = @ \cup E]
              /\ UNCHANGED <<log, ref, kc, owner, tool, late, starts, answers>>

(* It reads to the end of the log.  (A worker that lags is one that has not *)
(* taken this step yet.)                                                    *)
ReadOne(x) ==
  LET e == log[x.pos] IN
  [x EXCEPT !.f = Fold(@, e, x.pos), !.pos = @ + 1,
            !.wait = IF IsLink(e) /\ ~Rule("the position is the fold's") THEN @ ELSE @ \ {Unstamp(e)}]
RECURSIVE ReadAll(_)
ReadAll(x) == IF x.pos > Len(log) THEN x
              ELSE CHOOSE z \in {ReadAll(y) : y \in {ReadOne(x)}} : TRUE   \* (evaluated once)
(* Whatever is no longer owed is no longer worth a call.                    *)
Drop(x) == [x EXCEPT !.calls = {c \in @ : <<c[1], c[2], c[3]>> \in OwedModels(x.f)}]

Dispatching(w) == \E e \in wk[w].wait : e.k = "call.dispatched"
Read(w) ==
  /\ wk[w].pos <= Len(log)
  /\ wk[w].at = "in" \/ (wk[w].at = "revoking" /\ Dispatching(w) /\ Rule("a revoke reads its dispatches back"))
  /\ wk' = [wk EXCEPT ![w] = Drop(ReadAll(@))]
  /\ UNCHANGED <<log, ref, kc, owner, net, tool, late, starts, answers, left>>

(* An event of its own counts as read when the broker says that it is the   *)
(* very next one: what others have appended since is not read by that.      *)
(* (The model's beginning was appended by others.)                          *)
ReadAcknowledged(w) == \E o \in wk[w].pos..Len(log) :
  /\ Live(w) /\ o > Len(Prefix) /\ Unstamp(log[o]) \in wk[w].wait
  /\ o = wk[w].pos \/ ~Rule("an acknowledged event is the next one")
  /\ wk' = [wk EXCEPT ![w] = Drop(ReadOne([@ EXCEPT !.pos = o]))]
  /\ UNCHANGED <<log, ref, kc, owner, net, tool, late, starts, answers, left>>

(* Requests are taken up in their order, and several at a time.  One whose  *)
(* run is open, or remembered, or just being requested, is a duplicate.     *)
Real(i)  == Kind(i) # "gap"
After(i) == 1 + Max({0} \cup {j \in 1..(i - 1) : Real(j)})
Known(w, r) == wk[w].f.run[r].st # "unknown" \/ \E e \in wk[w].wait : e.k = "run.requested" /\ e.run = r
LinkFor(w, i) ==
  CASE Kind(i) = "cancel" -> [k |-> "request.noted", code |-> "cancelled", run |-> Run(i), req |-> i, after |-> After(i)]
    [] Known(w, Run(i)) /\ Rule("a run that is known is a duplicate") ->
         [k |-> "request.noted", code |-> "duplicate", run |-> Run(i), req |-> i, after |-> After(i)]
    [] Kind(i) = "bad" -> [k |-> "request.noted", code |-> "rejected", run |-> Run(i), req |-> i, after |-> After(i)]
    [] OTHER -> [k |-> "run.requested", run |-> Run(i), req |-> i, after |-> After(i)]
TakenUp(w, i) == \E e \in wk[w].wait : IsLink(e) /\ e.req = i
Admit(w) == \E i \in wk[w].f.next..Len(Requests) :
  /\ Live(w) /\ Real(i) /\ ~TakenUp(w, i)
  /\ \A j \in wk[w].f.next..(i - 1) : Real(j) => TakenUp(w, j)
  /\ Send(w, {LinkFor(w, i)}) /\ UNCHANGED left

(* MODEL CALLS.  One that somebody else goes on with is waited for, until   *)
(* its time is up; clocks are perfect here, so that is when nobody who      *)
(* handed it off is on it.                                                  *)
HandedOff(w, m) == wk[w].f.run[m[1]].hand[m[3]] \ {w}
TimeUp(w) == \E m \in OwedModels(wk[w].f) :
  /\ Live(w) /\ HandedOff(w, m) # {} /\ ~\E u \in wk[w].up : u[1] = m
  /\ \A v \in HandedOff(w, m) : ~Calling(v, m) /\ ~Replies(net[v], m)
  /\ wk' = [wk EXCEPT ![w].up = @ \cup {<<m, IF Rule("read on when the time is up") THEN Len(log) + 1 ELSE 0>>}]
  /\ UNCHANGED <<log, ref, kc, owner, net, tool, late, starts, answers, left>>

StartModel(w) == \E m \in OwedModels(wk[w].f) :
  /\ Live(w) /\ ~Calling(w, m)
  /\ ~Replies(wk[w].wait, m) \/ ~Rule("remember until read back")
  /\ HandedOff(w, m) # {} /\ Rule("wait for a hand-off") => \E u \in wk[w].up : u[1] = m /\ wk[w].pos >= u[2]
  /\ starts' = [starts EXCEPT ![m] = @ + 1]
  /\ wk' = [wk EXCEPT ![w].calls = @ \cup {Append(m, starts[m] + 1)}]
  /\ UNCHANGED <<log, ref, kc, owner, net, tool, late, answers, left>>

FinishModel(w) == \E x \in wk[w].calls :
  LET e == [k |-> "model.replied", run |-> x[1], life |-> x[2], turn |-> x[3], a |-> x[4]] IN
  /\ net' = [net EXCEPT ![w] = @ \cup {e}]
  /\ wk' = [wk EXCEPT ![w].calls = @ \ {x}, ![w].wait = @ \cup {e}]
  /\ UNCHANGED <<log, ref, kc, owner, tool, late, starts, answers, left>>

(* PUBLICATIONS.  One whose ack is lost is made again, unless at most once. *)
Content(f, p) == IF p \in f.notes THEN <<"error">>
                 ELSE IF f.run[p[1]].cancelled THEN <<"cancelled">> ELSE <<f.run[p[1]].rep, f.run[p[1]].res>>
Publish(w) == \E p \in ToPublish(w) :
  LET q == <<p[1], p[2], p[3]>> IN
  /\ Live(w) \/ wk[w].at = "revoking"
  /\ IF p[3] = 0
     THEN answers' = answers \cup {<<p[1], p[2], Content(wk[w].f, p)>>} /\ UNCHANGED tool
     ELSE tool' = [tool EXCEPT ![q].pub = @ + 1, ![q].queued = @ + 1] /\ UNCHANGED answers
  /\ \/ wk' = [wk EXCEPT ![w].acked = @ \cup {p}] /\ UNCHANGED left
     \/ /\ left.ack > 0 /\ left' = [left EXCEPT !.ack = @ - 1]
        /\ IF IsAmo(p) /\ Rule("at most once is published once")
           THEN wk' = [wk EXCEPT ![w].acked = @ \cup {p}] ELSE UNCHANGED wk
  /\ UNCHANGED <<log, ref, kc, owner, net, late, starts>>

Dispatch(w) == \E p \in Wanted(w) :
  LET q == <<p[1], p[2], p[3]>> IN
  /\ Live(w) /\ IsAmo(p) /\ Tok(w, p) = NoToken /\ ~SentFor(w, "call.dispatched", q)
  /\ Send(w, {[k |-> "call.dispatched", run |-> p[1], life |-> p[2], call |-> p[3], token |-> wk[w].token]})
  /\ UNCHANGED left

(* TIMERS OF CALLS.  A tool hand-off whose time is up; a deadline.          *)
Unresolved(f, p) == LET x == f.run[p[1]] IN x.life = p[2] /\ InBatch(x, p[1]) /\ x.res[p[3]] = 0
Lose(w) == \E p \in Pairs :
  /\ Live(w) /\ Unresolved(wk[w].f, p) /\ wk[w].f.run[p[1]].out[p[3]] # 0 /\ tool[p].held = 0
  /\ ~SentFor(w, "call.lost", p)
  /\ Send(w, {[k |-> "call.lost", run |-> p[1], life |-> p[2], call |-> p[3], handoff |-> wk[w].f.run[p[1]].out[p[3]]]})
  /\ UNCHANGED left

Expire(w) == \E p \in Pairs :
  /\ Live(w) /\ Unresolved(wk[w].f, p) /\ ~SentFor(w, "call.expired", p)
  /\ IF p \in late THEN UNCHANGED left ELSE left.clock > 0 /\ left' = [left EXCEPT !.clock = @ - 1]
  /\ Send(w, {[k |-> "call.expired", run |-> p[1], life |-> p[2], call |-> p[3], late |-> FALSE]})

Ref == IF log = <<>> THEN Empty ELSE ref[Len(log)]
(* The last resort of an at-most-once call: the token is taken, and nobody  *)
(* who has it will publish.                                                 *)
Hopeless(p) ==
  /\ p[3] \in Amo /\ Unresolved(Ref, p) /\ tool[p].queued = 0 /\ tool[p].held = 0
  /\ LET x == Ref.run[p[1]] IN
     /\ x.tok[p[3]] # NoToken /\ x.out[p[3]] = 0
     /\ \A w \in W : wk[w].token = x.tok[p[3]] => tool[p].pub > 0 \/ wk[w].at = "out"
TimePasses == \E p \in Pairs :
  /\ p \notin late /\ late' = late \cup {p}
  /\ IF Hopeless(p) THEN UNCHANGED left ELSE left.expiry > 0 /\ left' = [left EXCEPT !.expiry = @ - 1]
  /\ UNCHANGED <<log, ref, kc, owner, wk, net, tool, starts, answers>>

(* THE TOOLS, and a client that cancels.                                    *)
Returned(p) == [k |-> "tool.returned", run |-> p[1], life |-> p[2], call |-> p[3], v |-> tool[p].ret + 1]
ToolReturn == \E p \in Pairs :
  /\ AppendLog(Returned(p))
  /\ \/ tool[p].queued > 0 /\ tool' = [tool EXCEPT ![p].queued = @ - 1, ![p].ret = @ + 1] /\ UNCHANGED left
     \/ tool[p].held > 0 /\ tool' = [tool EXCEPT ![p].held = @ - 1, ![p].ret = @ + 1] /\ UNCHANGED left
     \/ /\ tool[p].queued > 0 /\ left.ack > 0 /\ left' = [left EXCEPT !.ack = @ - 1]
        /\ tool' = [tool EXCEPT ![p].ret = @ + 1]
  /\ UNCHANGED <<kc, owner, wk, net, late, starts, answers>>
ToolHandOff == \E p \in Pairs :
  /\ tool[p].queued > 0 /\ left.hand > 0 /\ left' = [left EXCEPT !.hand = @ - 1]
  /\ AppendLog([k |-> "calls.handed_off", run |-> p[1], life |-> p[2], call |-> p[3]])
  /\ tool' = [tool EXCEPT ![p].queued = @ - 1, ![p].held = @ + 1]
  /\ UNCHANGED <<kc, owner, wk, net, late, starts, answers>>
ToolCrash == \E p \in Pairs :
  /\ tool[p].held > 0 /\ left.toolcrash > 0 /\ left' = [left EXCEPT !.toolcrash = @ - 1]
  /\ tool' = [tool EXCEPT ![p].held = @ - 1, ![p].dead = @ + 1]
  /\ UNCHANGED <<log, ref, kc, owner, wk, net, late, starts, answers>>
Cancel == \E r \in Runs :
  /\ left.cancel > 0 /\ left' = [left EXCEPT !.cancel = @ - 1]
  /\ AppendLog([k |-> "run.cancelled", run |-> r])
  /\ UNCHANGED <<kc, owner, wk, net, tool, late, starts, answers>>

-----------------------------------------------------------------------------
(* OWNERSHIP                                                                *)

(* Kafka refuses a commit from anyone but the member assigned.              *)
Commit(w) ==
  /\ owner = w /\ (Live(w) \/ wk[w].at = "revoking")
  /\ left.commit > 0 /\ left' = [left EXCEPT !.commit = @ - 1]
  /\ kc' = CommitOf(w) /\ kc' # kc
  /\ UNCHANGED <<log, ref, owner, wk, net, tool, late, starts, answers>>

(* A worker that is given the partition back may keep its fold and read on; *)
(* any other starts from the commit.  What is in flight goes on.            *)
Assign(w) ==
  /\ owner = None /\ owner' = w
  /\ LET N == Len(log) + 1 IN
     \/ /\ wk[w].knows
        /\ wk' = [wk EXCEPT ![w].at = "in", ![w].asg = N, ![w].up = {},
                            ![w].end = IF Rule("capture the end at every assignment") THEN N ELSE @]
     \/ wk' = [wk EXCEPT ![w] = [@ EXCEPT !.at = "in", !.knows = TRUE, !.pos = kc.low, !.f = Start(kc),
                                          !.end = N, !.asg = N, !.done = kc.done, !.token = <<w, N>>,
                                          !.acked = {}, !.wait = @ \cap net[w], !.up = {}]]
  /\ UNCHANGED <<log, ref, kc, net, tool, late, starts, answers, left>>

(* The revoke callback: start nothing; hand model calls off, those too      *)
(* whose reply is not acknowledged; finish the publications; append         *)
(* partition.released; commit; return.  (The commit may be lost.)  One that *)
(* is still silent hands off what is in flight from before, and no more.    *)
InHand(w) == {<<x[1], x[2], x[3]>> : x \in wk[w].calls} \cup
             (IF Rule("hand off what is not yet appended") THEN {Of(e) : e \in {e \in net[w] : e.k = "model.replied"}} ELSE {})
Revoke(w) ==
  /\ owner = w /\ wk[w].at = "in" /\ left.rebalance > 0 /\ left' = [left EXCEPT !.rebalance = @ - 1]
  /\ wk' = [wk EXCEPT ![w].at = IF Live(w) THEN "revoking" ELSE "leaving"]
  /\ net' = [net EXCEPT ![w] = @ \cup {[k |-> "model.handed_off", run |-> m[1], life |-> m[2], turn |-> m[3], w |-> w] : m \in InHand(w)}]
  /\ UNCHANGED <<log, ref, kc, owner, tool, late, starts, answers>>
Return(w) ==
  /\ wk[w].at \in {"revoking", "leaving"} /\ \A e \in net[w] : e.k # "model.handed_off"
  /\ wk[w].at = "revoking" /\ Rule("flush at revoke") => ToPublish(w) = {}
  /\ wk[w].at = "revoking" /\ Rule("a revoke reads its dispatches back") => ~Dispatching(w)
  /\ wk' = [wk EXCEPT ![w].at = "out"] /\ owner' = IF owner = w THEN None ELSE owner
  /\ IF wk[w].at = "revoking" /\ Rule("a release says done") THEN AppendLog([k |-> "partition.released", done |-> DoneOf(w)]) ELSE UNCHANGED <<log, ref>>
  /\ UNCHANGED <<kc, net, tool, late, starts, answers, left>>

Crash(w) ==
  /\ wk[w].knows /\ left.crash > 0 /\ left' = [left EXCEPT !.crash = @ - 1]
  /\ wk' = [wk EXCEPT ![w] = NoWorker] /\ owner' = IF owner = w THEN None ELSE owner
  /\ \E landing \in SUBSET net[w] : net' = [net EXCEPT ![w] = landing]
  /\ UNCHANGED <<log, ref, kc, tool, late, starts, answers>>
Freeze(w) ==        \* from here on, whatever it does it does as a zombie
  /\ owner = w /\ owner' = None /\ left.freeze > 0 /\ left' = [left EXCEPT !.freeze = @ - 1]
  /\ UNCHANGED <<log, ref, kc, wk, net, tool, late, starts, answers>>
Notice(w) ==        \* it learns that it is no longer a member
  /\ wk[w].at # "out" /\ owner # w /\ wk' = [wk EXCEPT ![w].at = "out"]
  /\ UNCHANGED <<log, ref, kc, owner, net, tool, late, starts, answers, left>>
NoCommit == [low |-> 1, done |-> 1, next |-> 1]
Regress ==
  /\ left.regress > 0 /\ left' = [left EXCEPT !.regress = @ - 1] /\ kc' = NoCommit
  /\ UNCHANGED <<log, ref, owner, wk, net, tool, late, starts, answers>>

RECURSIVE History(_)
History(l) == IF l = <<>> THEN <<>>
              ELSE LET n == Len(l)  h == History(SubSeq(l, 1, n - 1)) IN
                   Append(h, Fold(IF n = 1 THEN Empty ELSE h[n - 1], l[n], n))
First == CHOOSE w \in W : TRUE    \* the workers are alike: one begins
Init ==
  /\ log = Prefix /\ ref = History(Prefix) /\ kc = NoCommit /\ owner = First
  /\ wk = [w \in W |-> IF w = First THEN [NoWorker EXCEPT !.at = "in", !.knows = TRUE, !.token = <<w, 1>>] ELSE NoWorker]
  /\ net = [w \in W |-> {}] /\ late = {} /\ answers = {}
  /\ tool = [p \in Pairs |-> [pub |-> 0, queued |-> 0, held |-> 0, ret |-> 0, dead |-> 0]]
  /\ starts = [m \in Models |-> IF Replies({Prefix[o] : o \in 1..Len(Prefix)}, m) THEN 1 ELSE 0]
  /\ left = [crash |-> MaxCrash, freeze |-> MaxFreeze, rebalance |-> MaxRebalance, ack |-> MaxLostAck,
             hand |-> MaxToolHandOff, toolcrash |-> MaxToolCrash, expiry |-> MaxExpiry, clock |-> MaxFastClock,
             cancel |-> MaxCancel, commit |-> MaxCommit, regress |-> MaxRegress]

(* Steps that are nobody's fault.  Each makes headway and none can be       *)
(* undone, so without further faults every behaviour ends.                  *)
Progress ==
  \/ ToolReturn \/ TimePasses
  \/ \E w \in W : \/ Read(w) \/ ReadAcknowledged(w) \/ Deliver(w) \/ Admit(w) \/ TimeUp(w) \/ StartModel(w)
                  \/ FinishModel(w) \/ Publish(w) \/ Dispatch(w) \/ Lose(w) \/ Expire(w) \/ Assign(w) \/ Return(w) \/ Notice(w)
Other ==
  \/ Cancel \/ Regress \/ ToolHandOff \/ ToolCrash
  \/ \E w \in W : Commit(w) \/ Revoke(w) \/ Crash(w) \/ Freeze(w)

Next == Progress \/ Other
Spec == Init /\ [][Next]_vars
FairSpec == Spec /\ WF_vars(Progress)

-----------------------------------------------------------------------------
(* WHAT MUST HOLD                                                           *)

Answered(r, life) == \E a \in answers : a[1] = r /\ a[2] = life
(* Every request is taken up, every life that was opened is answered.       *)
Before(o) == IF o = 1 THEN Empty ELSE ref[o - 1]
Counted(o) == ref[o] # Before(o)
Done == /\ \A i \in 1..Len(Requests) : Real(i) => \E o \in 1..Len(log) : IsLink(log[o]) /\ log[o].req = i /\ Counted(o)
        /\ \A p \in Ref.notes : Answered(p[1], p[2])
        /\ \A o \in 1..Len(log) : \A r \in Runs : ref[o].run[r].st # "unknown" => Answered(r, ref[o].run[r].life)
NoRunIsLost == Done \/ ENABLED Progress
EveryRunIsAnswered        == <>Done                        \* the same, as a temporal property
NoLivelock  == Len(log) <= MaxLog
AnswersAreIdentical   == \A a, b \in answers : a[1] = b[1] /\ a[2] = b[2] => a = b

(* A fold that began at a commit has exactly the state that the whole log   *)
(* gives, but for runs that are closed and answered.                        *)
Agrees(f, g) ==
  /\ f.next = g.next
  /\ f.notes \subseteq g.notes /\ \A p \in g.notes \ f.notes : Answered(p[1], p[2])
  /\ \A r \in Runs : \/ f.run[r] = g.run[r]
                     \/ f.run[r].st = "unknown" /\ g.run[r].st = "closed" /\ Answered(r, g.run[r].life)
EveryFoldAgrees == \A w \in W : Live(w) /\ wk[w].pos > 1 => Agrees(wk[w].f, ref[wk[w].pos - 1])
CommitsLoseNothing == LET x == ReadAll([NoWorker EXCEPT !.pos = kc.low, !.f = Start(kc)]) IN Agrees(x.f, Ref)
DoneIsPublished   == \A p \in Due(Ref) : p[4] < Max({Ref.done, kc.done}) /\ ~IsAmo(p) =>
                IF p[3] = 0 THEN Answered(p[1], p[2]) ELSE tool[<<p[1], p[2], p[3]>>].pub > 0

NoCrash == left.crash = MaxCrash /\ left.freeze = MaxFreeze /\ left.regress = MaxRegress
NoFault == NoCrash /\ left.ack = MaxLostAck /\ left.toolcrash = MaxToolCrash
(* A rebalance never repeats a model call; a crash or a freeze once.        *)
OnlyFaultsRepeatModelCalls == \A m \in Models : starts[m] <= 1 + (MaxCrash - left.crash) + (MaxFreeze - left.freeze)
RebalancesRepeatNoCall  == NoFault => \A p \in Pairs : tool[p].pub <= 1
AtMostOnce            == \A p \in Pairs : p[3] \in Amo => tool[p].pub <= 1
(* Rebalances alone never cost an at-most-once call its outcome.            *)
RebalancesLoseNoOutcome == NoFault /\ left.expiry = MaxExpiry /\ left.clock = MaxFastClock =>
                       \A p \in Pairs : Ref.run[p[1]].res[p[3]] \notin {Expired, Unknown}
(* A run id that comes again while it is remembered is not run again.       *)
KnownRunsAreNotRunAgain == NoCrash /\ left.rebalance = MaxRebalance =>
             \A r \in Runs : Cardinality({ref[o].run[r].life : o \in 1..Len(log)} \ {0}) <= 1
(* A call is published again for a loss only if it was lost.                *)
OnlyLostCallsAreRepublished == \A p \in Pairs : Cardinality({o \in 1..Len(log) : /\ log[o].k = "call.lost" /\ Counted(o)
                                           /\ <<log[o].run, log[o].life, log[o].call>> = p}) <= tool[p].dead

(* A reply that was in the log when its caller was assigned is never paid   *)
(* for again.                                                               *)
NeverPaidAgain == [][\A w \in W : \A x \in wk'[w].calls \ wk[w].calls : \A o \in 1..(wk[w].asg - 1) :
                       ref[o].run[x[1]].life = x[2] => ref[o].run[x[1]].rep[x[3]] = 0]_vars
(* What has been decided in a life stays so; and it was decided there.      *)
ResultsCountOnce == [][Len(log') > Len(log) => LET f == Ref  g == ref'[Len(log')]  e == log'[Len(log')] IN \A r \in Runs :
                LET x == f.run[r]  y == g.run[r] IN
                /\ x.life = y.life => /\ \A t \in {1, 2} : x.rep[t] # 0 => y.rep[t] = x.rep[t]
                                      /\ \A c \in Calls : x.res[c] # 0 => y.res[c] = x.res[c]
                /\ e.k \in {"model.replied", "tool.returned"} /\ y # x => e.life = x.life
                /\ e.k = "call.expired" /\ y # x => <<e.run, e.life, e.call>> \in late]_vars

(* agent.log and agent.requests, for the .cfg files.                        *)
Nothing == <<>>
Opened  == << [k |-> "run.requested", run |-> "r", req |-> 1, after |-> 1] >>
Replied == << [k |-> "run.requested", run |-> "r", req |-> 1, after |-> 1],
              [k |-> "model.replied", run |-> "r", life |-> 1, turn |-> 1, a |-> 1] >>
One     == << <<"run", "r">> >>
Two     == << <<"run", "r">>, <<"run", "s">> >>
Twice   == << <<"run", "r">>, <<"run", "r">> >>           \* a client sends its run twice
Bad     == << <<"bad", "b">>, <<"gap", "b">>, <<"run", "r">> >>   \* offsets may have gaps
BadCopy == << <<"run", "r">>, <<"bad", "r">> >>
ThenCancel == << <<"run", "r">>, <<"cancel", "r">> >>
=============================================================================
