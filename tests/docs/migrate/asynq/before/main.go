package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"os"
	"time"

	"github.com/hibiken/asynq"
)

type Order struct {
	Number int `json:"number"`
	Cents  int `json:"cents"`
}

var client *asynq.Client

func charge(ctx context.Context, task *asynq.Task) error {
	var order Order
	if err := json.Unmarshal(task.Payload(), &order); err != nil {
		return fmt.Errorf("payload: %v: %w", err, asynq.SkipRetry)
	}
	retried, _ := asynq.GetRetryCount(ctx)
	if retried == 0 {
		return errors.New("the bank does not answer")
	}
	mail := asynq.NewTask("mail", task.Payload())
	if _, err := client.EnqueueContext(ctx, mail, asynq.Queue("critical")); err != nil {
		return err
	}
	_, err := fmt.Fprintf(task.ResultWriter(), "order %d paid on attempt %d", order.Number, retried+1)
	return err
}

func mail(_ context.Context, task *asynq.Task) error {
	var order Order
	if err := json.Unmarshal(task.Payload(), &order); err != nil {
		return err
	}
	fmt.Printf("mail: order %d: %d cents paid\n", order.Number, order.Cents)
	return nil
}

func main() {
	redis, err := asynq.ParseRedisURI(os.Getenv("REDIS_URL"))
	if err != nil {
		log.Fatal(err)
	}
	client = asynq.NewClient(redis)
	defer client.Close()

	payload, _ := json.Marshal(Order{Number: 7, Cents: 12500})
	_, err = client.Enqueue(asynq.NewTask("charge", payload),
		asynq.MaxRetry(5), asynq.Timeout(30*time.Second),
		asynq.Retention(time.Hour), asynq.Unique(time.Minute))
	if err != nil {
		log.Fatal(err)
	}

	server := asynq.NewServer(redis, asynq.Config{
		Concurrency:    10,
		Queues:         map[string]int{"critical": 3, "default": 1},
		RetryDelayFunc: func(int, error, *asynq.Task) time.Duration { return time.Second },
	})
	mux := asynq.NewServeMux()
	mux.HandleFunc("charge", charge)
	mux.HandleFunc("mail", mail)
	if err := server.Run(mux); err != nil {
		log.Fatal(err)
	}
}
