// A tool worker in Go: it serves the tool "pollen" on the queue "go", knowing nothing of Anabranch but
// docs/wire.md. It reads tool.call records and appends one tool.returned for each to where the call says.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"log"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
)

const queue = "go"

type call struct {
	Tool  string          `json:"tool"`
	Input json.RawMessage `json:"input"`
	Reply struct {
		Topic     string `json:"topic"`
		Partition *int32 `json:"partition"`
	} `json:"reply"`
}

var (
	tools = map[string]func(json.RawMessage) (string, error){"pollen": pollen}
	// What the broker may hold against one record; anything else it says is about this worker.
	recordFaults = []*kerr.Error{kerr.UnknownTopicOrPartition, kerr.InvalidTopicException, kerr.MessageTooLarge}
)

// pollen makes its figures up, but the same ones for the same city.
func pollen(input json.RawMessage) (string, error) {
	var in struct{ City string }
	if err := json.Unmarshal(input, &in); err != nil || strings.TrimSpace(in.City) == "" {
		return "", fmt.Errorf(`pollen wants {"city": "<name>"}, not %.200s`, input)
	}
	h := fnv.New32a()
	h.Write([]byte(strings.ToLower(strings.TrimSpace(in.City))))
	grains := h.Sum32() % 160
	level := []string{"low", "moderate", "high", "very high"}[grains/40]
	out, err := json.Marshal(map[string]any{"city": in.City, "level": level, "grains_per_m3": grains})
	return string(out), err
}

// answer turns a tool.call record into its tool.returned record; an error means that nobody can be answered.
func answer(record *kgo.Record, worker string) (*kgo.Record, error) {
	var c call
	if err := json.Unmarshal(record.Value, &c); err != nil {
		return nil, fmt.Errorf("its body is not a tool call: %w", err)
	}
	from := map[string][]byte{}
	for _, h := range record.Headers {
		from[h.Key] = h.Value
	}
	for _, name := range []string{"ce_runid", "ce_life", "ce_callid"} {
		if from[name] == nil {
			return nil, fmt.Errorf("it has no header %s", name)
		}
	}
	if c.Reply.Topic == "" || c.Reply.Partition == nil {
		return nil, errors.New("it does not say where to reply")
	}
	started, outcome := time.Now(), "ok"
	content, err := "", fmt.Errorf("this worker has no tool %q; it serves: pollen", c.Tool)
	if tool, known := tools[c.Tool]; known {
		content, err = tool(c.Input)
	}
	if err != nil {
		content, outcome = err.Error(), "error"
	}
	body, err := json.Marshal(map[string]any{"content": content, "started_at": epoch(started),
		"finished_at": epoch(time.Now()), "tries": 1, "worker": worker})
	headers := []kgo.RecordHeader{
		{Key: "ce_specversion", Value: []byte("1.0")},
		{Key: "ce_id", Value: append([]byte("result/"), from["ce_callid"]...)},
		{Key: "ce_source", Value: []byte("/tools/" + worker)},
		{Key: "ce_type", Value: []byte("tool.returned")},
		{Key: "ce_runid", Value: from["ce_runid"]},
		{Key: "ce_life", Value: from["ce_life"]},
		{Key: "ce_callid", Value: from["ce_callid"]},
		{Key: "ce_outcome", Value: []byte(outcome)},
	}
	return &kgo.Record{Topic: c.Reply.Topic, Partition: *c.Reply.Partition, Key: from["ce_runid"],
		Value: body, Headers: headers}, err
}

func epoch(t time.Time) float64 { return float64(t.UnixMicro()) / 1e6 }

// serve answers what one poll brought. It commits only when every result is acknowledged, so that a crash
// repeats a call and never loses one. A record that cannot be answered is logged and passed over; an error
// means that nothing is committed and the next worker serves these calls again.
func serve(ctx context.Context, client *kgo.Client, fetched kgo.Fetches, worker string) error {
	fetched.EachError(func(topic string, p int32, err error) { log.Printf("reading %s/%d: %v", topic, p, err) })
	var results []*kgo.Record
	fetched.EachRecord(func(r *kgo.Record) {
		if result, err := answer(r, worker); err != nil {
			log.Printf("passing over %s/%d/%d: %v", r.Topic, r.Partition, r.Offset, err)
		} else {
			results = append(results, result)
		}
	})
	for _, sent := range client.ProduceSync(ctx, results...) {
		var refused *kerr.Error
		r, err := sent.Record, sent.Err
		if ctx.Err() != nil || errors.As(err, &refused) && !slices.Contains(recordFaults, refused) {
			return fmt.Errorf("writing to %s/%d: %w", r.Topic, r.Partition, err)
		} else if err != nil {
			log.Printf("passing over a call of run %s: writing to %s/%d: %v", r.Key, r.Topic, r.Partition, err)
		}
	}
	if err := client.CommitRecords(ctx, fetched.Records()...); err != nil {
		log.Printf("committing: %v; these calls may be repeated", err)
	}
	return nil
}

func run(ctx context.Context, namespace, bootstrap string) error {
	host, _ := os.Hostname()
	worker := fmt.Sprintf("go-%s-%d", host, os.Getpid())
	client, err := kgo.NewClient(
		kgo.SeedBrokers(strings.Split(bootstrap, ",")...),
		kgo.ConsumeTopics(namespace+".tool.calls."+queue),
		kgo.ConsumerGroup(namespace+".tools."+queue),
		kgo.DisableAutoCommit(),
		kgo.BlockRebalanceOnPoll(),                        // no partition moves between its poll and its commit
		kgo.RecordPartitioner(kgo.ManualPartitioner()),    // the call says where its answer goes
		kgo.ProducerBatchCompression(kgo.NoCompression()), // the default, snappy, is not for every reader
	)
	if err != nil {
		return err
	}
	defer client.CloseAllowingRebalance()
	log.Printf("%s serves pollen on %s.tool.calls.%s", worker, namespace, queue)
	for {
		fetched := client.PollFetches(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if err := serve(ctx, client, fetched, worker); err != nil {
			return err
		}
		client.AllowRebalance()
	}
}

func main() {
	namespace, bootstrap := os.Getenv("ANABRANCH_NAMESPACE"), os.Getenv("ANABRANCH_BOOTSTRAP")
	if namespace == "" || bootstrap == "" {
		log.Fatal("set ANABRANCH_NAMESPACE (such as weather) and ANABRANCH_BOOTSTRAP (such as localhost:9092)")
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, namespace, bootstrap); err != nil && ctx.Err() == nil {
		log.Fatal(err)
	}
}
