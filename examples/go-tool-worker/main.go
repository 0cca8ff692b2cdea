// A tool worker in Go: it serves the tool "pollen" on the queue "go", knowing nothing of Anabranch but docs/wire.md.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"log"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

// pollen makes its figures up, but the same ones for the same city.
func pollen(input json.RawMessage) (string, error) {
	var in struct{ City string }
	if err := json.Unmarshal(input, &in); err != nil || strings.TrimSpace(in.City) == "" {
		return "", fmt.Errorf(`pollen wants {"city": "<name>"}, not %.200s`, input)
	}
	grains := crc32.ChecksumIEEE([]byte(strings.ToLower(strings.TrimSpace(in.City)))) % 160
	level := []string{"low", "moderate", "high", "very high"}[grains/40]
	out, err := json.Marshal(map[string]any{"city": in.City, "level": level, "grains_per_m3": grains})
	return string(out), err
}

func now() float64 { return float64(time.Now().UnixMicro()) / 1e6 }

// answer executes a tool.call and returns its tool.returned; an error means that nobody can be answered.
func answer(call *kgo.Record) (*kgo.Record, error) {
	var body struct {
		Tool  string
		Input json.RawMessage
		Reply struct {
			Topic     string
			Partition *int32
		}
	}
	if err := json.Unmarshal(call.Value, &body); err != nil || body.Reply.Topic == "" || body.Reply.Partition == nil {
		return nil, fmt.Errorf("it does not say where to reply (%v)", err)
	}
	started, outcome := now(), "ok"
	content, err := "", fmt.Errorf("this worker has no tool %q; it serves: pollen", body.Tool)
	if body.Tool == "pollen" {
		content, err = pollen(body.Input)
	}
	if err != nil { // a failure is a result too: its text is for the model
		content, outcome = err.Error(), "error"
	}
	headers := map[string]string{"ce_runid": "", "ce_life": "", "ce_callid": ""} // what is copied from the call
	for _, h := range call.Headers {
		if _, copied := headers[h.Key]; copied || h.Key == "traceparent" && len(h.Value) > 0 { // a trace there may be
			headers[h.Key] = string(h.Value)
		}
	}
	result := &kgo.Record{Topic: body.Reply.Topic, Partition: *body.Reply.Partition, Key: []byte(headers["ce_runid"])}
	headers["ce_specversion"], headers["ce_type"], headers["ce_outcome"] = "1.0", "tool.returned", outcome
	headers["ce_source"], headers["ce_id"] = "go-tool-worker", fmt.Sprintf("%d/%d", call.Partition, call.Offset)
	for name, value := range headers {
		if value == "" {
			return nil, errors.New("it has no header " + name)
		}
		result.Headers = append(result.Headers, kgo.RecordHeader{Key: name, Value: []byte(value)})
	}
	result.Value, err = json.Marshal(map[string]any{
		"content": content, "started_at": started, "finished_at": now(), "tries": 1, "worker": "go-tool-worker"})
	return result, err
}

// serve executes the calls of one poll at the same time, and commits when every result is acknowledged: a crash
// repeats a call and loses none. What cannot be answered is passed over.
func serve(client *kgo.Client, calls []*kgo.Record) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second) // a signal does not interrupt it
	defer cancel()
	var running sync.WaitGroup
	for _, call := range calls {
		running.Add(1)
		go func() {
			defer running.Done()
			result, err := answer(call)
			if err == nil {
				err = client.ProduceSync(ctx, result).FirstErr()
			}
			if ctx.Err() != nil {
				log.Fatalf("the broker takes no results (%v): these calls are for the next worker", err)
			} else if err != nil {
				log.Printf("passing over %s/%d/%d: %v", call.Topic, call.Partition, call.Offset, err)
			}
		}()
	}
	running.Wait()
	if err := client.CommitRecords(ctx, calls...); err != nil {
		log.Printf("committing: %v; these calls may be repeated", err)
	}
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	namespace := os.Getenv("ANABRANCH_NAMESPACE")
	client, err := kgo.NewClient(kgo.SeedBrokers(strings.Split(os.Getenv("ANABRANCH_BOOTSTRAP"), ",")...),
		kgo.ConsumeTopics(namespace+".tool.calls.go"), kgo.ConsumerGroup(namespace+".tools.go"),
		kgo.DisableAutoCommit(), kgo.BlockRebalanceOnPoll(), // no partition moves between its poll and its commit
		kgo.RecordPartitioner(kgo.ManualPartitioner())) // the call says where its answer goes
	if namespace == "" || err != nil {
		log.Fatalf("set ANABRANCH_NAMESPACE (weather, say) and ANABRANCH_BOOTSTRAP (%v)", err)
	}
	defer client.CloseAllowingRebalance()
	for fetched := client.PollFetches(ctx); ctx.Err() == nil; fetched = client.PollFetches(ctx) {
		fetched.EachError(func(topic string, p int32, err error) { log.Printf("reading %s/%d: %v", topic, p, err) })
		serve(client, fetched.Records())
		client.AllowRebalance()
	}
}
