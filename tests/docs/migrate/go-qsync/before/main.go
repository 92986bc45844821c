package main

import (
	"context"
	"errors"
	"fmt"
	"log"
	"time"

	"github.com/alnovi/qsync/v2"
	"github.com/redis/go-redis/v9"
)

func charge(_ context.Context, task *qsync.TaskInfo) error {
	if task.Retried == 0 {
		return errors.New("the bank does not answer")
	}
	fmt.Printf("order %s paid on attempt %d\n", task.Payload, task.Retried+1)
	return nil
}

func main() {
	queue, err := qsync.New(
		redis.NewClient(&redis.Options{Addr: "localhost:6379"}), qsync.WithPrefix("shop"))
	if err != nil {
		log.Fatal(err)
	}

	task := qsync.NewTask("charge", []byte("7"),
		qsync.WithRetry(5), qsync.WithRetryDelay(time.Second), qsync.WithDelay(time.Second))
	if err := queue.NewClient().Enqueue(context.Background(), qsync.Critical, task); err != nil {
		log.Fatal(err)
	}

	mux := qsync.NewMux()
	if err := mux.HandleFunc("charge", charge); err != nil {
		log.Fatal(err)
	}
	server, err := queue.NewServer(mux, qsync.WithMatrix(map[string]int{
		qsync.Critical: 5, qsync.Default: 3, qsync.Lower: 1,
	}))
	if err != nil {
		log.Fatal(err)
	}
	if err := server.Start(context.Background()); err != nil {
		log.Fatal(err)
	}
	time.Sleep(time.Minute)
	_ = server.Stop(context.Background())
}
